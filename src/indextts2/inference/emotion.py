"""How a caller says which emotion is wanted: audio, eight weights, names or words (04 section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from indextts2.errors import UsageError
from indextts2.types import Waveform


@dataclass(frozen=True)
class EmotionAudio:
    """The emotion of another recording. `alpha` 0: the speaker's own, 1: the recording's; beyond extrapolates."""

    audio: str | Path | bytes | Waveform
    alpha: float = 1.0


@dataclass(frozen=True)
class EmotionVector:
    """Eight weights in the order of `indextts2.config.EMOTIONS`, scaled by `alpha` clamped to [0, 1]."""

    weights: tuple[float, ...]
    alpha: float = 1.0
    random_rows: bool = False


@dataclass(frozen=True)
class EmotionWords:
    """The emotion that the Qwen model reads from `text` (None: from the text that is spoken)."""

    text: str | None = None
    alpha: float = 1.0
    random_rows: bool = False


Emotion = EmotionAudio | EmotionVector | EmotionWords


def as_emotion(value: Emotion | Waveform | Path | str | Sequence[float] | None) -> Emotion | None:
    """Read the short forms: a Path or Waveform is emotion audio, a string names (`happy:0.7`), numbers a vector.

    Raises:
        UsageError: the value is none of these, or a name or number in it is wrong.
    """
    from indextts2.models.emotion.vector import check_emotion_vector, parse_emotion_vector

    if value is None or isinstance(value, (EmotionAudio, EmotionWords)):
        return value
    if isinstance(value, EmotionVector):
        return EmotionVector(tuple(check_emotion_vector(value.weights)), value.alpha, value.random_rows)
    if isinstance(value, (Path, Waveform)):
        return EmotionAudio(value)
    if isinstance(value, str):
        return EmotionVector(tuple(parse_emotion_vector(value)))
    if isinstance(value, Sequence):
        return EmotionVector(tuple(check_emotion_vector(value)))
    raise UsageError(f"an emotion is audio, a vector, names or words, not {type(value).__name__}")
