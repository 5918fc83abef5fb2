"""The harmonic source: its signals, its pieces, and the vocoder that it drives."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from indextts2.models.vocoder.bigvgan import BigVGAN
from indextts2.models.vocoder.source import (
    HIGHEST_HZ,
    LOWEST_HZ,
    PITCH_CLASSES,
    HarmonicSource,
    Pitch,
    PitchEstimator,
    class_hz,
    class_place,
    harmonics,
)
from tests.models.vocoder.test_bigvgan import TINY

RATE, HOP = 22050, 256


def source() -> HarmonicSource:
    torch.manual_seed(0)
    return HarmonicSource(num_mels=5, channels=4, hop_size=HOP, sample_rate_hz=RATE)


def steady(hz: float, frames: int, voicing: float = 1.0) -> Pitch:
    return Pitch(torch.full((1, frames), hz), torch.full((1, frames), voicing))


def spectrum(signal: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Frequencies in Hz and magnitudes of a windowed signal (T,)."""
    size = signal.shape[-1]
    return np.fft.rfftfreq(size, 1 / RATE), np.abs(np.fft.rfft(signal.numpy() * np.hanning(size)))


def test_the_pulses_hold_every_harmonic_and_nothing_else():
    pulses, fundamental, _ = source().excitation(steady(210.0, 86), 0, 86)[0]
    hz, magnitude = spectrum(pulses)
    at_harmonic = np.abs((hz / 210 + 0.5) % 1 - 0.5) * 210 < 4
    assert magnitude[at_harmonic & (hz > 100)].max() > 100 * magnitude[~at_harmonic].max()
    peaks = [magnitude[np.abs(hz - k * 210) < 4].max() for k in range(1, 52)]
    assert max(peaks) < 1.25 * min(peaks)
    assert hz[spectrum(fundamental)[1].argmax()] == pytest.approx(210, abs=1.5)


def test_each_signal_has_about_unit_power():
    power = source().excitation(steady(130.0, 200), 0, 200)[0].square().mean(-1)
    assert power.tolist() == pytest.approx([1, 1, 1], abs=0.05)


def test_what_is_unvoiced_has_only_noise():
    pulses, fundamental, noise = source().excitation(steady(130.0, 20, voicing=0.0), 0, 20)[0]
    assert not pulses.any()
    assert not fundamental.any()
    assert noise.std() > 0.9


def test_the_phase_follows_a_glide():
    """The zero crossings of the fundamental are as many as the pitch has cycles."""
    frames = 172
    hz = torch.linspace(100, 300, frames)[None]
    fundamental = source().excitation(Pitch(hz, torch.ones_like(hz)), 0, frames)[0, 1]
    rising = int(((fundamental[:-1] < 0) & (fundamental[1:] >= 0)).sum())
    assert rising == pytest.approx(float(hz.sum()) * HOP / RATE, abs=1.5)
    # No jump anywhere: a step of 300 Hz at full rate.
    assert fundamental.diff().abs().max() < 1.05 * math.sqrt(2) * 2 * math.pi * 300 / RATE


def test_pieces_equal_the_whole():
    model, mel = source(), torch.randn(2, 5, 60)
    with torch.inference_mode():
        whole = model(mel, 0, 60)
        pieces = [model(mel, first, min(first + 7, 60)) for first in range(0, 60, 7)]
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=0, atol=1e-5)


def test_a_long_utterance_keeps_its_pitch():
    """After ten minutes the phase still has the precision of the first second."""
    frames = 51_680
    tail = source().excitation(steady(199.7, frames), frames - 2, frames)[0, 1]
    time = torch.arange((frames - 2) * HOP, frames * HOP, dtype=torch.float64) / RATE
    cycles = float(torch.tensor(199.7, dtype=torch.float32)) * time
    torch.testing.assert_close(tail.double(), (2 * math.pi * cycles).sin() * math.sqrt(2), rtol=0, atol=5e-3)


def test_harmonics_are_the_sum_of_cosines():
    phase = torch.cat((torch.rand(200, dtype=torch.float64), torch.tensor([0.0, 0.5, 1.0 - 1e-12]).double()))
    total = sum(torch.cos(2 * math.pi * k * phase) for k in range(1, 12)) + 0.25 * torch.cos(2 * math.pi * 12 * phase)
    count = torch.full_like(phase, 11.25)
    torch.testing.assert_close(harmonics(phase, count), total / math.sqrt(11.25 / 2), rtol=1e-6, atol=1e-6)


def test_classes_span_the_range_of_voices():
    assert float(class_hz(torch.tensor(0.0))) == pytest.approx(LOWEST_HZ)
    assert float(class_hz(torch.tensor(PITCH_CLASSES - 1.0))) == pytest.approx(HIGHEST_HZ, rel=1e-5)
    hz = torch.tensor([60.0, 123.0, 480.0])
    torch.testing.assert_close(class_hz(class_place(hz)), hz)


def test_the_pitch_of_a_frame_depends_on_no_more_than_the_reach():
    torch.manual_seed(0)
    model = PitchEstimator(5, 4).double()
    mel = torch.randn(1, 5, 50, dtype=torch.float64, requires_grad=True)
    _, voiced = model.scores(mel)
    voiced[0, 25].backward()
    touched = mel.grad[0].abs().sum(0).nonzero().flatten()
    assert (int(touched.min()), int(touched.max())) == (25 - model.reach, 25 + model.reach)


def test_the_vocoder_with_a_source_in_chunks_equals_the_whole():
    torch.manual_seed(0)
    model = BigVGAN(dataclasses.replace(TINY, pitch_channels=4)).eval()
    mel = torch.randn(2, TINY.num_mels, 90)
    with torch.inference_mode():
        whole = model(mel)
        joined = torch.cat(list(model.chunks(mel, 20)), -1)
        silent = model.generate(mel, torch.zeros(2, 3, 90 * TINY.hop_size))
    torch.testing.assert_close(joined, whole, rtol=0, atol=1e-5)
    # The source is heard.
    assert (silent - whole).abs().max() > 1e-3


def test_a_steady_mel_does_not_make_the_source_repeat_with_the_frames():
    """What convolutions alone cannot do: the answer to equal frames is not the same for each of them."""
    torch.manual_seed(0)
    mel = torch.zeros(1, TINY.num_mels, 200)
    middle = slice(80 * TINY.hop_size, 120 * TINY.hop_size)
    with torch.inference_mode():
        plain = BigVGAN(TINY)(mel)[0, 0, middle].reshape(-1, TINY.hop_size)
        driven = BigVGAN(dataclasses.replace(TINY, pitch_channels=4))(mel)[0, 0, middle].reshape(-1, TINY.hop_size)
    assert plain.std(0).max() < 1e-6
    assert driven.std(0).min() > 1e-4
