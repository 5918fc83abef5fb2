"""The model that ships in the package: it speaks, stops, repeats itself, and is small."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from indextts2 import IndexTTS2, InferenceConfig
from indextts2.checkpoints.layout import installed_models
from indextts2.inference.named_voices import resolve_speaker

SENTENCES = ("The stone wall kept the garden safe from the wind.", "When will the next ferry cross to the island?")

TOLD = (
    *SENTENCES,
    "Thirteen people have signed the letter so far.",
    "Please leave the key under the blue flower pot.",
    "She had never seen so many birds in one tree.",
    "The train to the coast leaves at seven in the morning.",
)
# Of Whisper-base; about twice what the model card measures.
WORD_ERROR_LIMIT = 0.3


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


def test_emotions_change_the_rate_as_listeners_expect(tts: IndexTTS2) -> None:
    def seconds(emotion: str) -> float:
        spoken = (tts.infer(text, "ada", emotion, config=InferenceConfig(seed=1)) for text in SENTENCES)
        return sum(result.duration for result in spoken)

    assert seconds("sad:1") > 1.1 * seconds("angry:1")


@pytest.mark.parametrize("text", ["Hello, world!", "Yes.", "Stop!"])
def test_a_word_alone_comes_to_its_end(tts: IndexTTS2, text: str) -> None:
    def seconds(seed: int) -> float:
        return tts.infer(text, "ada", config=InferenceConfig(seed=seed, steps=1)).duration

    # Long enough to be said, and all but one of them short enough to be nothing else.
    lengths = sorted(seconds(seed) for seed in range(8))
    assert lengths[0] > 0.3
    assert lengths[-2] < 3.0


@pytest.mark.slow
def test_it_says_what_it_was_told(tts: IndexTTS2) -> None:
    from indextts2.training.judges import Transcriber, packaged_whisper, word_error_rate

    pytest.importorskip("faster_whisper", reason="needs the extra `evaluate`")
    pytest.importorskip("jiwer", reason="needs the extra `evaluate`")
    whisper = os.environ.get("INDEXTTS2_WHISPER", "")
    if not whisper:
        pytest.skip("INDEXTTS2_WHISPER names no Whisper model: a folder, or packaged:FOLDER")
    packaged = whisper.removeprefix("packaged:")
    transcriber = Transcriber(whisper if packaged == whisper else packaged_whisper(Path(packaged)))
    said, heard = [], []
    for voice in ("ada", "ben", "cleo"):
        for text in TOLD:
            result = tts.infer(text, voice, config=InferenceConfig(seed=1))
            said.append(text)
            heard.append(transcriber.transcribe(result.samples, result.sample_rate))
    assert word_error_rate(said, heard) < WORD_ERROR_LIMIT


def test_it_is_small() -> None:
    folder = installed_models()["embedded"]
    assert sum(path.stat().st_size for path in folder.rglob("*")) < 40e6
