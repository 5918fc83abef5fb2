"""Resampling: equal to the reference bit for bit, lengths at any rates, and cutting before or after."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts2.audio.loader import load_audio, load_reference
from indextts2.audio.resampler import emotion_audio, resample, sinc_resample, speaker_audio
from indextts2.errors import AudioError
from indextts2.types import Waveform
from tests.audio.signals import float_wav, tone
from tests.conftest import Golden, relative_l2


def test_speaker_chain_equals_the_reference(reference: Path, golden: Golden) -> None:
    audio_22k, audio_16k = speaker_audio(load_audio(reference / "inputs" / "spk.wav"))
    assert relative_l2(audio_22k[None], golden["spk_audio_22k"]) <= 1e-6
    assert relative_l2(audio_16k[None], golden["spk_audio_16k"]) <= 1e-6


def test_emotion_chain_equals_the_reference(reference: Path, golden: Golden) -> None:
    inputs = reference / "inputs"
    assert relative_l2(emotion_audio(load_audio(inputs / "emo.wav"))[None], golden["emo_audio_16k"]) <= 1e-6
    assert relative_l2(emotion_audio(load_audio(inputs / "spk.wav"))[None], golden["spk_as_emo_audio_16k"]) <= 1e-6


def test_prompts_are_cut_at_15_seconds() -> None:
    waveform = Waveform(tone(17, 48000), 48000)
    audio_22k, audio_16k = speaker_audio(waveform)
    assert (len(audio_22k), len(audio_16k), len(emotion_audio(waveform))) == (330750, 240000, 240000)


@pytest.mark.parametrize("rate_hz", [16000, 22050, 44100, 48000])
def test_cutting_a_long_reference_first_changes_no_sample(rate_hz: int) -> None:
    samples = tone(24, rate_hz)
    whole, cut = Waveform(samples, rate_hz), load_reference(float_wav(samples, rate_hz))
    assert len(cut.samples) < len(samples)
    for a, b in zip(speaker_audio(whole), speaker_audio(cut), strict=True):
        assert np.array_equal(a, b)
    assert np.array_equal(emotion_audio(whole), emotion_audio(cut))


@pytest.mark.parametrize("change", [resample, sinc_resample])
def test_a_tone_stays_a_tone(change) -> None:
    t = np.arange(22050) / 22050
    resampled = change(np.sin(2 * np.pi * 440 * t).astype(np.float32), 22050, 16000)
    expected = np.sin(2 * np.pi * 440 * np.arange(len(resampled)) / 16000)
    assert np.abs(resampled - expected)[500:-500].max() < 2e-3


@pytest.mark.parametrize("change", [resample, sinc_resample])
def test_equal_rates_change_nothing_and_bad_rates_are_refused(change) -> None:
    samples = tone(0.1)
    assert np.array_equal(change(samples, 22050, 22050), samples)
    with pytest.raises(AudioError, match="must be positive"):
        change(samples, 0, 16000)


def test_sinc_filters_that_would_not_fit_are_refused() -> None:
    with pytest.raises(AudioError, match="too fine"):
        sinc_resample(tone(0.1), 44101, 16000)


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 5000),
    st.sampled_from([8000, 11025, 16000, 22050, 24000, 44100, 48000, 96000]),
    st.sampled_from([16000, 22050, 24000]),
)
def test_lengths(samples: int, from_hz: int, to_hz: int) -> None:
    x = tone(1, 5000)[:samples]
    assert len(resample(x, from_hz, to_hz)) == math.ceil(samples * (to_hz / from_hz))
    assert len(sinc_resample(x, from_hz, to_hz)) == math.ceil(samples * to_hz / from_hz)
