"""Emotion vectors: reading, checking, scaling, normalising."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts2.errors import UsageError
from indextts2.models.emotion.vector import (
    check_emotion_vector,
    normalize_emotion_vector,
    parse_emotion_vector,
    scale_emotion_vector,
)

ZERO = (0.0,) * 8


def one(index: int, weight: float) -> tuple[float, ...]:
    return tuple(weight if i == index else 0.0 for i in range(8))


def test_parse_names() -> None:
    assert parse_emotion_vector("happy:0.7, Sad : 0.2") == (0.7, 0, 0.2, 0, 0, 0, 0, 0)
    assert parse_emotion_vector("calm:1") == one(7, 1.0)


def test_parse_numbers() -> None:
    assert parse_emotion_vector("0,0, 0.8,0,0,0,0,0") == one(2, 0.8)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("joy:0.5", "unknown emotion 'joy'"),
        ("happy:0.5,happy:0.1", "twice"),
        ("happy:x", "'x' is no number"),
        ("happy:", "is no number"),
        ("happy:1.3", "happy"),
        ("happy:nan", "happy"),
        ("happy:0.5,0.2", "unknown emotion"),
        ("0,0,1", "not 3"),
        ("", "is no number"),
        ("happy", "is no number"),
        ("sad:-0.1", "sad"),
    ],
)
def test_parse_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_emotion_vector(text)


def test_check_accepts_numbers_of_any_kind() -> None:
    assert check_emotion_vector([0, 1, 1.2, np.float32(1.2), np.int64(1), 0.0, 0, 0]) == (0, 1, 1.2, 1.2, 1, 0, 0, 0)
    assert check_emotion_vector(np.zeros(8)) == ZERO


@pytest.mark.parametrize(
    "vector",
    [
        [0.0] * 7,
        [0.0] * 9,
        [1.3, *[0] * 7],
        [-0.1, *[0] * 7],
        [True, *[0] * 7],
        [math.nan, *[0] * 7],
        [math.inf, *[0] * 7],
        ["0.5", *[0] * 7],
        [None, *[0] * 7],
        "00000000",
        dict.fromkeys(range(8), 0.5),
        5,
    ],
)
def test_check_refuses(vector: object) -> None:
    with pytest.raises(UsageError):
        check_emotion_vector(vector)


def test_scale_truncates_to_four_decimals() -> None:
    assert scale_emotion_vector(one(0, 0.8), 0.65) == one(0, int(0.8 * 0.65 * 10000) / 10000)
    assert scale_emotion_vector(one(0, 0.33333), 0.5) == one(0, 0.1666)
    # 0.01 * 0.03 * 10000 is 2.9999...: truncation, not rounding.
    assert 0.01 * 0.03 * 10000 < 3
    assert scale_emotion_vector(one(3, 0.01), 0.03) == one(3, 0.0002)


def test_scale_of_one_or_more_changes_nothing() -> None:
    vector = one(4, 0.123456789)
    assert scale_emotion_vector(vector, 1.0) == vector
    assert scale_emotion_vector(vector, 3.0) == vector
    assert scale_emotion_vector(vector, -2.0) == ZERO
    with pytest.raises(UsageError):
        scale_emotion_vector(vector, math.nan)


def test_worked_example_of_the_sliders() -> None:
    normalized = normalize_emotion_vector(one(0, 1.0))
    assert normalized == pytest.approx(one(0, 0.8))
    assert scale_emotion_vector(normalized, 0.65)[0] in (0.52, 0.5199)


def test_normalize_caps_the_sum() -> None:
    assert normalize_emotion_vector(one(2, 0.5)) == one(2, 0.5)
    assert normalize_emotion_vector(one(7, 0.5)) == one(7, 0.28125)
    assert normalize_emotion_vector(one(7, 0.5), apply_bias=False) == one(7, 0.5)
    assert normalize_emotion_vector([1.0] * 8, apply_bias=False) == pytest.approx([0.1] * 8)


@given(st.lists(st.floats(0, 1.2), min_size=8, max_size=8), st.floats(0, 1))
def test_scaled_vectors_stay_valid(weights: list[float], alpha: float) -> None:
    scaled = scale_emotion_vector(check_emotion_vector(weights), alpha)
    assert check_emotion_vector(scaled) == scaled
    assert all(s <= w for s, w in zip(scaled, weights, strict=True))
    assert sum(normalize_emotion_vector(weights)) <= 0.8 + 1e-9
