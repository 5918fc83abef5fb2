from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from indextts2.errors import ConfigError
from indextts2.text.phonemes import PIECES, phoneme_ids, split_phonemes
from indextts2.training.data import HELD_OUT_SPEAKERS, Corpus, LengthBatches, pad
from indextts2.training.listening import listen


def test_prepared_arrays_have_the_rates_of_the_model(corpus: Corpus) -> None:
    for number, clip in enumerate(corpus.clips):
        assert abs(clip.length("audio_22k") - clip.seconds * 22050) < 3
        assert abs(clip.length("audio_16k") - clip.seconds * 16000) < 3
        assert clip.length("mel") == clip.length("audio_22k") // 256
        assert corpus.get("mel", number).shape == (clip.length("mel"), 80)
        assert corpus.get("fbank", number).shape[1] == 160
        assert abs(clip.length("fbank") - 50 * clip.seconds) < 2
        assert np.abs(corpus.audio(number)).max() > 0.1


def test_held_out_speakers_are_never_trained_on(corpus: Corpus) -> None:
    assert {corpus.clips[n].speaker for n in corpus.held_out} == {HELD_OUT_SPEAKERS[0]}
    assert sorted(corpus.train + corpus.held_out) == list(range(len(corpus)))
    assert not any(corpus.clips[n].is_held_out for n in corpus.train)


def test_other_clip_is_of_the_same_speaker(corpus: Corpus) -> None:
    rng = np.random.default_rng(0)
    for number in range(len(corpus)):
        other = corpus.other_clip(number, rng)
        assert other != number
        assert corpus.clips[other].speaker == corpus.clips[number].speaker


def test_missing_corpus_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="run the data preparation"):
        Corpus(tmp_path)


def test_batches_hold_every_item_once_per_epoch_and_keep_to_the_size() -> None:
    lengths = {n: 5 + n % 7 for n in range(100)}
    batches = LengthBatches(lengths, max_rows=40, seed=3)
    seen: list[int] = []
    while len(seen) < 100:
        batch = batches.next()
        assert len(batch) * max(lengths[n] for n in batch) <= 40
        seen += batch
    assert sorted(seen) == list(range(100))
    assert batches.epoch == 0
    batches.next()
    assert batches.epoch == 1


def test_batches_resume_where_they_stopped() -> None:
    lengths = {n: 5 + n % 7 for n in range(50)}
    first = LengthBatches(lengths, 40, seed=3)
    for _ in range(17):
        first.next()
    second = LengthBatches(lengths, 40, seed=3)
    second.load_state(first.state())
    assert [first.next() for _ in range(20)] == [second.next() for _ in range(20)]


def test_pad_fills_with_the_value() -> None:
    padded = pad([np.ones((2, 3)), np.ones((4, 3))], -1)
    assert padded.shape == (2, 4, 3)
    assert (padded[0, 2:] == -1).all()
    assert (padded[0, :2] == 1).all()


def test_phonemes_join_stress_and_vowel_and_drop_what_is_unknown() -> None:
    assert split_phonemes("  hˌi  ɪz%, dˈɛst ") == ["h", "ˌi", " ", "ɪ", "z", ",", " ", "d", "ˈɛ", "s", "t"]
    ids = phoneme_ids("hˌi ɪz.")
    assert [PIECES[i] for i in ids] == ["h", "ˌi", " ", "ɪ", "z", "."]
    assert min(ids) > 1


class Parrot:
    """Hears what a clip says, but for every third one."""

    def __init__(self, text: str) -> None:
        self.text, self.count = text, 0

    def transcribe(self, samples: np.ndarray, sample_rate_hz: int) -> str:
        assert sample_rate_hz == 16000
        assert len(samples) > 0
        self.count += 1
        return self.text if self.count % 3 else "something else entirely"


def test_misread_clips_are_not_trained_on(corpus: Corpus) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("num2words")
    listener = Parrot("He is dest.")
    figures = listen(corpus, listener)
    assert figures["clips"] == len(corpus)
    assert figures["misread"] == 3
    assert 0.3 < figures["word_error"] < 0.5
    again = Corpus(corpus.folder)
    misread = {number for number in range(len(corpus)) if number % 3 == 2}
    assert set(again.train) == set(corpus.train) - misread
    assert set(again.held_out) == set(corpus.held_out)


def test_listening_goes_on_where_it_was_cut(corpus: Corpus) -> None:
    pytest.importorskip("jiwer")
    pytest.importorskip("num2words")
    listen(corpus, Parrot("he is dest"))
    lines = (corpus.folder / "heard.jsonl").read_text().splitlines()
    (corpus.folder / "heard.jsonl").write_text("\n".join(lines[:-2]) + "\n")
    listener = Parrot("he is dest")
    assert listen(corpus, listener)["clips"] == len(corpus)
    assert listener.count == 2
