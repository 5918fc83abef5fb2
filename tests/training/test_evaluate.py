"""The judges without their optional libraries, and copy-synthesis on the small reference model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from indextts2.config import InferenceConfig
from indextts2.errors import ConfigError, MissingExtraError
from indextts2.training.data import HELD_OUT_SPEAKERS, Corpus
from indextts2.training.evaluate import Evaluation, EvaluationConfig, Item, _similarities
from indextts2.training.judges import SpeakerJudge, Transcriber, plain_words, signal_statistics, word_error_rate

RATE = 22050


def tone(hz: float, amplitude: float) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * hz * np.arange(RATE) / RATE)).astype(np.float32)


def test_statistics_of_a_tone() -> None:
    figures = signal_statistics(tone(1000, 0.1) + np.float32(0.01), RATE)
    assert figures["level_dbfs"] == pytest.approx(10 * np.log10(0.1**2 / 2 + 0.01**2), abs=0.05)
    assert figures["dc"] == pytest.approx(0.01, abs=1e-3)
    assert figures["clipped"] == 0
    assert figures["high_band_db"] < -50
    assert figures["flatness_db"] < -30


def test_statistics_see_treble_noise_and_clipping() -> None:
    assert signal_statistics(tone(9500, 0.1), RATE)["high_band_db"] == pytest.approx(0, abs=0.1)
    noise = np.random.default_rng(0).normal(0, 0.1, RATE).astype(np.float32)
    assert signal_statistics(noise, RATE)["flatness_db"] > -6
    clipped = np.clip(tone(100, 2.0), -1, 1)
    assert signal_statistics(clipped, RATE)["clipped"] > 0.5


@pytest.mark.skipif(importlib.util.find_spec("faster_whisper") is not None, reason="the extra is installed")
def test_missing_judges_name_the_extra() -> None:
    with pytest.raises(MissingExtraError, match=r"indextts2\[evaluate\]"):
        Transcriber()
    with pytest.raises(MissingExtraError, match=r"indextts2\[evaluate\]"):
        SpeakerJudge()


def test_word_error_ignores_spelling_of_numbers_and_punctuation() -> None:
    pytest.importorskip("num2words")
    pytest.importorskip("jiwer")
    assert plain_words("It’s $5, on the 21st—50%!") == "it's five dollars on the twenty first fifty percent"
    assert word_error_rate(["Two hundred and six."], ["206"]) == 0
    assert word_error_rate(["one two three four"], ["one two three"]) == 0.25


def test_unknown_way_is_refused() -> None:
    with pytest.raises(ConfigError, match="unknown ways"):
        EvaluationConfig(output="x", ways=("echo",))
    with pytest.raises(ConfigError, match="needs sentences"):
        EvaluationConfig(output="x")


class ByMean:
    """Speaker judge of the test: the direction of (1, mean)."""

    def embed(self, samples: np.ndarray, sample_rate_hz: int) -> np.ndarray:
        vector = np.array([1.0, float(samples.mean())])
        return vector / np.linalg.norm(vector)


def test_similarity_is_to_every_reference_and_silence_has_none() -> None:
    judge = ByMean()
    references = {"low": judge.embed(np.zeros(5), RATE), "high": judge.embed(np.ones(5), RATE)}
    item = Item("speech", "high", "text", np.full(100, 0.9, np.float32), RATE)
    similarities = _similarities(judge, item, references)  # type: ignore[arg-type]
    assert max(similarities, key=similarities.__getitem__) == "high"
    silent = Item("speech", "high", "text", np.zeros(100, np.float32), RATE)
    assert _similarities(judge, silent, references) == {}  # type: ignore[arg-type]


def test_copy_synthesis_gives_sound_of_the_right_length(corpus: Corpus, small_checkpoint: Path) -> None:
    config = EvaluationConfig(
        output="unused", model=str(small_checkpoint), data=str(corpus.folder), ways=("recording", "vocoder", "codes"),
        speakers=1, clips_per_speaker=1, min_clip_seconds=0.5, inference=InferenceConfig(steps=1, seed=3),
    )  # fmt: skip
    evaluation = Evaluation(config)
    assert list(evaluation.references) == [HELD_OUT_SPEAKERS[0]]
    items = {item.way: item for item in evaluation.items()}
    length = len(items["recording"].samples)
    assert 0 <= length - len(items["vocoder"].samples) < 256
    # Codes come at 50 Hz, 1.72 mel frames each.
    assert abs(len(items["codes"].samples) - length) < 1000
    for way in ("vocoder", "codes"):
        assert np.isfinite(items[way].samples).all()
        assert items[way].samples.std() > 0
