"""One small model for all tests of the pipeline, and options that keep its runs short."""

from __future__ import annotations

from pathlib import Path

import pytest

from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig, Voice
from tests.tiny import recording

TEXT = "Hello world, this is a test."


def options(seed: int = 1, steps: int = 2, **changes: object) -> InferenceConfig:
    """Short runs of the small model: it is no voice and never stops by itself."""
    generation = {"max_mel_tokens": 16, "num_beams": 1, "top_k": 50}
    names = GenerationConfig.__dataclass_fields__
    generation |= {name: changes.pop(name) for name in list(changes) if name in names}
    return InferenceConfig(generation=GenerationConfig(**generation), seed=seed, steps=steps, **changes)


@pytest.fixture(scope="session")
def tts(small_checkpoint: Path) -> IndexTTS2:
    return IndexTTS2.from_pretrained(small_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def speaker(reference: Path) -> Path:
    return reference / "inputs" / "spk.wav"


@pytest.fixture(scope="session")
def emotion_audio(reference: Path) -> Path:
    return reference / "inputs" / "emo.wav"


@pytest.fixture(scope="session")
def tiny_tts(tiny_model: Path) -> IndexTTS2:
    return IndexTTS2.from_pretrained(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def tiny_voice(tiny_tts: IndexTTS2) -> Voice:
    return tiny_tts.voice(recording())
