"""What an emotion changes in the speech of a model: pitch, rate and level, per emotion and for plain speech."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from indextts2.config import EMOTIONS, InferenceConfig
from indextts2.errors import MissingExtraError
from indextts2.inference.pipeline import IndexTTS2
from indextts2.training.judges import decibel
from indextts2.types import Waveform

PITCH_RANGE_HZ = (60.0, 500.0)
FRAME_SAMPLES = 2048
LOUD_SHARE = 0.1


def prosody(samples: np.ndarray, sample_rate_hz: int, words: int) -> dict[str, float]:
    """Prosody of one utterance (N,) of `words` words.

    Returns:
        `words_per_second`, `level_dbfs` (RMS), `pitch_hz` (median of loud frames, YIN of de Cheveigné and Kawahara
        2002), `pitch_range` (semitones between its 10th and 90th percentile).
    """
    try:
        import librosa
    except ImportError as error:
        raise MissingExtraError("pitch", "evaluate") from error
    low, high = PITCH_RANGE_HZ
    pitch = librosa.yin(samples, fmin=low, fmax=high, sr=sample_rate_hz, frame_length=FRAME_SAMPLES)
    level = librosa.feature.rms(y=samples, frame_length=FRAME_SAMPLES)[0][: len(pitch)]
    voiced = pitch[: len(level)][(level > LOUD_SHARE * level.max()) & (pitch[: len(level)] < 0.95 * high)]
    bottom, median, top = (float(x) for x in np.percentile(voiced if len(voiced) else np.full(1, low), (10, 50, 90)))
    return {
        "words_per_second": words * sample_rate_hz / max(len(samples), 1),
        "level_dbfs": decibel(float(np.mean(samples.astype(np.float64) ** 2))),
        "pitch_hz": median,
        "pitch_range": 12 * math.log2(top / bottom),
    }


def emotion_report(
    tts: IndexTTS2, references: Sequence[Waveform], sentences: Sequence[str], config: InferenceConfig, seed: int
) -> list[dict[str, object]]:
    """Mean prosody of `sentences`, read in turn by the `references`, plain and with each emotion at full weight."""
    rows: list[dict[str, object]] = []
    for emotion in (None, *EMOTIONS):
        figures = []
        for number, text in enumerate(sentences):
            reference = references[number % len(references)]
            spoken = replace(config, seed=seed + number)
            result = tts.infer(text, reference, emotion=f"{emotion}:1" if emotion else None, config=spoken)
            figures.append(prosody(result.samples, result.sample_rate, len(text.split())))
        means = {name: round(float(np.mean([f[name] for f in figures])), 3) for name in figures[0]}
        rows.append({"emotion": emotion or "plain", "utterances": len(figures), **means})
    return rows
