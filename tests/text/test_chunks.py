from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts2.errors import TextError
from indextts2.text.chunks import MAX_CHUNK_CHARACTERS, split_chunks


def test_a_text_within_the_limit_stays_whole() -> None:
    text = "One. Two. " * (MAX_CHUNK_CHARACTERS // 10)
    assert split_chunks(text) == [text]
    assert split_chunks("") == [""]


@pytest.mark.parametrize(
    ("text", "limit", "chunks"),
    [
        ("One two. Three four. Five", 21, ["One two. Three four. ", "Five"]),
        ("One two. Three four. Five", 20, ["One two. Three ", "four. Five"]),
        ("今天很好。明天2025年也好。", 9, ["今天很好。", "明天2025年也", "好。"]),
        ("一行\n二行\n三行", 6, ["一行\n二行\n", "三行"]),
        ("你好吗我很好", 4, ["你好吗", "我很好"]),
        ("a.a.a.a.a", 4, ["a.", "a.", "a.", "a.a"]),
    ],
)
def test_where_it_cuts(text: str, limit: int, chunks: list[str]) -> None:
    assert split_chunks(text, limit) == chunks


def test_no_cut_lies_in_a_number_or_a_word() -> None:
    text = "价格12345.67元和abcdefg公里" * 20
    chunks = split_chunks(text, 30)
    for left, right in pairwise(chunks):
        assert not (left[-1].isascii() or right[0].isascii())


@given(st.text(alphabet="ab1 .,。，\n你好é<", max_size=200), st.integers(2, 30))
def test_the_chunks_together_are_the_text(text: str, limit: int) -> None:
    try:
        chunks = split_chunks(text, limit)
    except TextError:
        return
    assert "".join(chunks) == text
    assert all(0 < len(chunk) <= limit for chunk in chunks) or not text


@pytest.mark.parametrize("run", ["1" * 100_000, "a" * 100_000, "1,000," * 20_000, "１" * 100_000])
def test_endless_runs_fail_at_once(run: str) -> None:
    start = time.process_time()
    with pytest.raises(TextError, match=r"more than 1000 characters in a row without a space .* from character 7"):
        split_chunks("Read: " + run)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("part", ["a.", "你", "你 ", "😀", "a b", " ", "กา", "!"])
def test_long_texts_take_linear_time(part: str) -> None:
    text = part * 100_000
    start = time.process_time()
    assert "".join(split_chunks(text)) == text
    assert time.process_time() - start < 2
