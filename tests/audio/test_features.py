"""Features against the reference, against direct sums, and at their edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts2.audio.features import (
    LogMel,
    fbank_mean_normalised,
    kaldi_fbank,
    log_mel,
    seamless_features,
    slaney_mel_basis,
)
from indextts2.config import MelConfig
from indextts2.errors import AudioError
from tests.audio.signals import tone
from tests.conftest import Golden, relative_l2

TINY = MelConfig(sample_rate=16000, n_fft=512, win_length=400, hop_length=160, n_mels=20, fmin=50.0, fmax=7000.0)


@pytest.mark.parametrize("kind", ["spk", "emo"])
def test_seamless_features_equal_the_reference(golden: Golden, kind: str) -> None:
    features, mask = seamless_features(golden[f"{kind}_audio_16k"][0])
    assert relative_l2(features[None], golden[f"{kind}_w2v_input_features"]) <= 1e-5
    assert np.array_equal(mask[None], golden[f"{kind}_w2v_attention_mask"])
    assert mask.dtype == np.int32 and features.dtype == np.float32


def test_kaldi_fbank_equals_the_reference(golden: Golden) -> None:
    fbank = kaldi_fbank(golden["spk_audio_16k"][0])
    assert relative_l2(fbank, golden["fbank"]) <= 1e-5
    assert fbank.dtype == np.float32


def test_log_mel_equals_the_reference(golden: Golden) -> None:
    mel = log_mel(golden["spk_audio_22k"][0], MelConfig())
    assert relative_l2(mel[None], golden["ref_mel"]) <= 1e-6
    assert mel.dtype == np.float32


def test_log_mel_equals_a_direct_sum() -> None:
    """One frame of a window shorter than the transform, by the definition of the discrete Fourier transform."""
    samples = tone(0.1, 16000)
    padded = np.pad(samples.astype(np.float64), 176, mode="reflect")
    window = np.zeros(512)
    window[56:456] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 400)
    frame = padded[3 * 160 : 3 * 160 + 512] * window
    angles = -2j * np.pi / 512 * np.outer(np.arange(257), np.arange(512))
    magnitude = np.sqrt(np.abs(np.exp(angles) @ frame) ** 2 + 1e-9)
    expected = np.log(np.maximum(slaney_mel_basis(TINY) @ magnitude, 1e-5))
    assert np.allclose(log_mel(samples, TINY)[:, 3], expected, atol=1e-4)


def test_log_mel_of_a_batch_is_that_of_its_rows_and_has_gradients() -> None:
    rows = np.stack([tone(0.2), tone(0.2, hz=900)])
    batch = torch.from_numpy(rows).requires_grad_()
    mel = LogMel(MelConfig())(batch)
    assert mel.shape == (2, 80, 4410 // 256)
    for row, expected in zip(mel, rows, strict=True):
        assert torch.allclose(row.detach(), torch.from_numpy(log_mel(expected)), atol=1e-6)
    mel.mean().backward()
    assert batch.grad is not None and torch.isfinite(batch.grad).all() and batch.grad.abs().max() > 0


def test_log_mel_has_finite_gradients_on_silence() -> None:
    silence = torch.zeros(1, 2048, requires_grad=True)
    mel = LogMel(MelConfig())(silence)
    assert torch.allclose(mel, torch.full_like(mel, np.log(1e-5)), atol=1.0)
    mel.sum().backward()
    assert silence.grad is not None and torch.isfinite(silence.grad).all()


def test_log_mel_module_has_no_state() -> None:
    assert not LogMel(MelConfig()).state_dict()


@pytest.mark.parametrize("config", [MelConfig(), TINY, MelConfig(fmax=8000.0)], ids=["official", "tiny", "fmax"])
def test_mel_basis_is_made_of_triangles_of_unit_area(config: MelConfig) -> None:
    basis = slaney_mel_basis(config)
    assert basis.shape == (config.n_mels, config.n_fft // 2 + 1)
    assert (basis >= 0).all() and (basis.max(axis=1) > 0).all()
    # The wide triangles are sampled finely enough for their area to be seen.
    area = basis[-5:].sum(axis=1) * config.sample_rate / config.n_fft
    assert np.allclose(area, 1, atol=0.1)
    hz = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    assert not basis[:, hz > (config.fmax or config.sample_rate / 2)].any()
    assert slaney_mel_basis(config) is basis
    with pytest.raises(ValueError, match="read-only"):
        basis[0, 0] = 1


def test_fbank_mean_is_taken_per_band() -> None:
    samples = tone(0.5, 16000)
    normalised = fbank_mean_normalised(samples)
    raw = kaldi_fbank(samples)
    assert np.allclose(normalised, raw - raw.mean(axis=0), atol=1e-5)
    assert np.abs(normalised.mean(axis=0)).max() < 1e-5


def test_silence_gives_the_floor_and_no_nan() -> None:
    silence = np.zeros(4000, np.float32)
    assert np.allclose(kaldi_fbank(silence), np.log(1.1920929e-07))
    features, mask = seamless_features(silence)
    assert np.isfinite(features).all()
    assert np.abs(features[mask == 1]).max() < 0.01


def test_15_seconds_give_749_rows() -> None:
    features, mask = seamless_features(tone(15, 16000))
    assert features.shape == (749, 160) and mask.sum() == 749


@settings(deadline=None, max_examples=25)
@given(st.integers(560, 8000))
def test_frame_counts(samples: int) -> None:
    """Spec 01 section 1.1: an odd last frame is padded by ones and masked."""
    x = tone(0.5, 16000)[:samples]
    frames = 1 + (samples - 400) // 160
    features, mask = seamless_features(x)
    assert features.shape == (-(-frames // 2), 160)
    assert mask.sum() == frames // 2
    if frames % 2:
        assert mask[-1] == 0 and (features[-1, 80:] == 1).all() and not (features[-1, :80] == 1).all()
    assert kaldi_fbank(x).shape == (frames, 80)
    assert log_mel(x).shape == (80, samples // 256)


@pytest.mark.parametrize(
    ("feature", "too_few"), [(kaldi_fbank, 399), (seamless_features, 559), (log_mel, 384)], ids=lambda v: str(v)[:20]
)
def test_too_short_audio_is_refused(feature, too_few: int) -> None:
    with pytest.raises(AudioError, match=f"{too_few} samples are too few"):
        feature(np.zeros(too_few, np.float32))
    feature(np.zeros(too_few + 1, np.float32))
    with pytest.raises(AudioError, match="one-dimensional"):
        feature(np.zeros((1, 4000), np.float32))
