"""Emotion vectors: eight weights in the order of `EMOTIONS` (spec 04 sections 1, 2 and 5)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real

from indextts2.config import EMOTIONS
from indextts2.errors import UsageError

MAX_WEIGHT = 1.2
"""Largest weight of one emotion: what text to emotion gives at most."""
MAX_SUM = 0.8
BIAS = (0.9375, 0.875, 1.0, 1.0, 0.9375, 0.9375, 0.6875, 0.5625)
"""How much of each slider counts; strong emotions need less."""
TRUNCATION = 10000

EmotionVector = tuple[float, ...]


def check_emotion_vector(values: Iterable[object]) -> EmotionVector:
    """`values` as eight floats in [0, MAX_WEIGHT].

    The official code accepts anything here. Negative or larger weights leave the range that the model knows, and are
    an error in this package.

    Raises:
        UsageError: another count, or an entry that is no number, is not finite or is out of range.
    """
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise UsageError(f"an emotion vector must be a list of {len(EMOTIONS)} numbers, not {values!r}")
    entries = list(values)
    if len(entries) != len(EMOTIONS):
        raise UsageError(f"an emotion vector needs {len(EMOTIONS)} numbers ({', '.join(EMOTIONS)}), not {len(entries)}")
    return tuple(_check_weight(name, value) for name, value in zip(EMOTIONS, entries, strict=True))


def _check_weight(name: str, value: object) -> float:
    weight = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    # 1.2 in float32 is a little above 1.2.
    if not 0.0 <= weight <= MAX_WEIGHT + 1e-6:
        raise UsageError(f"emotion {name} must be a number in [0, {MAX_WEIGHT}], not {value!r}")
    return min(weight, MAX_WEIGHT)


def parse_emotion_vector(text: str) -> EmotionVector:
    """Read ``happy:0.7,sad:0.2`` or eight numbers ``0,0,0.8,0,0,0,0,0``.

    Raises:
        UsageError: an unknown or repeated emotion, or a weight that is no number in [0, MAX_WEIGHT].
    """
    entries = [entry.strip() for entry in text.split(",")]
    if not any(":" in entry for entry in entries):
        return check_emotion_vector(_number(entry) for entry in entries)
    weights: dict[str, float] = {}
    for entry in entries:
        name, _, value = (part.strip() for part in entry.partition(":"))
        name = name.lower()
        if name not in EMOTIONS:
            raise UsageError(f"unknown emotion {name!r} in {text!r}; known are {', '.join(EMOTIONS)}")
        if name in weights:
            raise UsageError(f"emotion {name!r} is given twice in {text!r}")
        weights[name] = _number(value)
    return check_emotion_vector(weights.get(name, 0.0) for name in EMOTIONS)


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"{text!r} is no number; write emotions as happy:0.7,sad:0.2 or as eight numbers") from None


def scale_emotion_vector(vector: Sequence[float], alpha: float) -> EmotionVector:
    """Weaken a vector: each weight times `alpha`, which is clamped to [0, 1], cut to four decimals. 1 changes nothing.

    Raises:
        UsageError: `alpha` is not finite.
    """
    if not math.isfinite(alpha):
        raise UsageError(f"the strength of an emotion must be a finite number, not {alpha!r}")
    scale = max(0.0, min(1.0, alpha))
    if scale == 1.0:
        return tuple(vector)
    # This order of products decides on which side of a fourth decimal a value falls.
    return tuple(int(weight * scale * TRUNCATION) / TRUNCATION for weight in vector)


def normalize_emotion_vector(vector: Sequence[float], apply_bias: bool = True) -> EmotionVector:
    """Turn slider positions into a vector that keeps the voice recognisable.

    Every weight is multiplied by its bias; a sum above 0.8 is scaled down to it. Synthesis never does so by itself.
    """
    weights = [weight * bias for weight, bias in zip(vector, BIAS, strict=True)] if apply_bias else list(vector)
    total = sum(weights)
    if total > MAX_SUM:
        weights = [weight * (MAX_SUM / total) for weight in weights]
    return tuple(weights)
