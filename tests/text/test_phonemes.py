from __future__ import annotations

import pytest

from indextts2.errors import TextError
from indextts2.text.normalizer import TextNormalizer
from indextts2.text.phonemes import PIECES, START_ID, STOP_ID, PhonemeTokenizer, split_phonemes
from indextts2.text.segmenter import split_segments
from indextts2.text.tokenizer import require_speech


@pytest.fixture(scope="module")
def tokenizer() -> PhonemeTokenizer:
    return PhonemeTokenizer(TextNormalizer())


def test_text_becomes_the_phonemes_of_the_training_corpus(tokenizer: PhonemeTokenizer) -> None:
    assert tokenizer.to_text(tokenizer.tokenize("He is destined to be famous.")) == "hˌi ɪz dˈɛstənd tə bi fˈAməs."


def test_numbers_are_spoken_as_words(tokenizer: PhonemeTokenizer) -> None:
    assert tokenizer.tokenize("I have 12 cats.") == tokenizer.tokenize("I have twelve cats.")
    assert tokenizer.tokenize("12") == tokenizer.tokenize("twelve")


def test_a_final_mark_is_added_once(tokenizer: PhonemeTokenizer) -> None:
    assert tokenizer.tokenize("Hello")[-1] == "."
    assert tokenizer.tokenize("Hello?")[-1] == "?"


def test_ids_are_those_of_the_pieces_and_never_start_or_stop(tokenizer: PhonemeTokenizer) -> None:
    pieces = tokenizer.tokenize("The quick brown fox, wasn't it; really!")
    ids = tokenizer.to_ids(pieces)
    assert [PIECES[i] for i in ids] == pieces
    assert {START_ID, STOP_ID}.isdisjoint(ids)
    assert max(ids) < tokenizer.vocab_size
    assert tokenizer.unknown(pieces) == []
    with pytest.raises(TextError, match="no phoneme piece"):
        tokenizer.to_ids(["@"])


def test_segments_end_at_sentence_ends(tokenizer: PhonemeTokenizer) -> None:
    pieces = tokenizer.tokenize("Hello there. How are you, my friend? " * 3)
    segments = split_segments(pieces, 40, marks=tokenizer.marks)
    assert [piece for segment in segments for piece in segment] == pieces
    assert all(segment[-1] in ".?," for segment in segments)


@pytest.mark.parametrize("text", ["", "  ", "...", "?!"])
def test_text_without_speech_is_refused(tokenizer: PhonemeTokenizer, text: str) -> None:
    with pytest.raises(TextError, match="nothing that can be spoken"):
        require_speech(text, tokenizer.tokenize(text), tokenizer)


@pytest.mark.parametrize("text", ["你好", "Hello 世界", "\ud800"])
def test_text_that_cannot_be_read_is_refused(tokenizer: PhonemeTokenizer, text: str) -> None:
    with pytest.raises(TextError):
        tokenizer.tokenize(text)


def test_blanks_are_joined() -> None:
    assert split_phonemes("  ə   ə ") == ["ə", " ", "ə"]
