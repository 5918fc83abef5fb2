"""The model that ships in the package: it speaks, stops, repeats itself, and is small."""

from __future__ import annotations

import numpy as np
import pytest

from indextts2 import IndexTTS2, InferenceConfig
from indextts2.checkpoints.layout import installed_models
from indextts2.inference.named_voices import resolve_speaker

SENTENCES = ("The stone wall kept the garden safe from the wind.", "When will the next ferry cross to the island?")


@pytest.fixture(scope="module")
def tts() -> IndexTTS2:
    return IndexTTS2.from_pretrained(device="cpu")


@pytest.mark.parametrize("text", SENTENCES)
def test_a_sentence_has_a_natural_length_and_level(tts: IndexTTS2, text: str) -> None:
    result = tts.infer(text, resolve_speaker(None), config=InferenceConfig(seed=1))
    assert not result.segments[0].hit_limit
    assert 1.5 < result.duration < 6.0
    level = 20 * np.log10(np.sqrt(np.mean(result.samples**2)))
    assert -35 < level < -15
    assert np.mean(np.abs(result.samples) > 0.99) < 1e-3
    assert abs(float(result.samples.mean())) < 0.02


def test_the_same_seed_says_the_same(tts: IndexTTS2) -> None:
    first, again, other = (tts.infer("Hello, world!", "ben", config=InferenceConfig(seed=s)) for s in (1, 1, 2))
    assert np.array_equal(first.samples, again.samples)
    assert not np.array_equal(first.mel_codes, other.mel_codes)


def test_it_is_small() -> None:
    folder = installed_models()["embedded"]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 40e6
