"""Prosody figures of signals whose prosody is known."""

from __future__ import annotations

import numpy as np
import pytest

from indextts2.training.prosody import prosody

RATE = 22050


def test_pitch_level_and_rate_of_a_voice_like_tone() -> None:
    pytest.importorskip("librosa")
    time = np.arange(2 * RATE) / RATE
    tone = sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 6))
    samples = (0.1 * tone).astype(np.float32)
    figures = prosody(samples, RATE, words=6)
    assert figures["pitch_hz"] == pytest.approx(140, rel=0.02)
    assert figures["pitch_range"] < 0.5
    assert figures["words_per_second"] == pytest.approx(3.0)
    assert figures["level_dbfs"] == pytest.approx(10 * np.log10(np.mean(samples**2)), abs=0.01)


def test_silence_gives_finite_figures() -> None:
    pytest.importorskip("librosa")
    figures = prosody(np.zeros(RATE, np.float32), RATE, words=1)
    assert all(np.isfinite(value) for value in figures.values())
