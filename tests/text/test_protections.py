from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indextts2.text.protections import (
    correct_pinyin,
    hide_annotations,
    hide_names,
    hide_pinyin,
    hide_term_hyphens,
    letters_of,
    restore_annotations,
    restore_term_hyphens,
)


def test_letters_count_without_digits() -> None:
    assert [letters_of(index) for index in (0, 1, 25, 26, 27, 51, 52, 701, 702)] == [
        "a", "b", "z", "aa", "ab", "az", "ba", "zz", "aaa",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pinyin", "restored"),
    [
        ("xuan4", "XVAN4"),
        ("JU4", "JV4"),
        ("que3", "QVE3"),
        ("xing2", "XING2"),
        ("lüe4", "lüe4"),
        ("zhong4", "zhong4"),
        ("jüan1", "JVAN1"),
    ],
)
def test_pinyin_spelling(pinyin: str, restored: str) -> None:
    hidden = hide_pinyin(f"读{pinyin}。")
    assert hidden.text == "读<pinyin_a>。"
    assert hidden.restore(hidden.text, correct_pinyin) == f"读{restored}。"


def test_the_longest_pinyin_is_hidden_first() -> None:
    hidden = hide_pinyin("an1 xuan1 an1")
    assert hidden.text == "<pinyin_b> <pinyin_a> <pinyin_b>"
    assert hidden.restore(hidden.text, correct_pinyin) == "an1 XVAN1 an1"


def test_more_pinyin_than_letters() -> None:
    syllables = [f"{initial}{final}{tone}" for initial in "bpm" for final in ("a", "an") for tone in range(1, 6)]
    hidden = hide_pinyin("，".join(syllables))
    assert not any(character.isdigit() for character in hidden.text)
    assert hidden.restore(hidden.text, correct_pinyin) == "，".join(syllables)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("约瑟夫·高登-莱维特", "<n_a>"),
        ("由克里斯托弗·诺兰执导", "<n_a>"),
        ("甲-乙-丙-丁", "<n_a>-丁"),
        ("甲—乙，甲—乙，A-甲", "<n_a>，<n_a>，A-甲"),
        ("没有名字", "没有名字"),
    ],
)
def test_names(text: str, hidden: str) -> None:
    names = hide_names(text)
    assert names.text == hidden
    assert names.restore(names.text) == text


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("GPT-5-Nano", "GPT<H>5<H>Nano"),
        ("F5-TTS 很好", "F5<H>TTS 很好"),
        ("135-4567-8900", "135-4567-8900"),
        ("99-abc-d", "99-abc<H>d"),
        ("9abc-d", "9abc<H>d"),
        ("B--2", "B--2"),
        ("a-b xa-b", "a<H>b xa<H>b"),
    ],
)
def test_technical_terms(text: str, hidden: str) -> None:
    result, found = hide_term_hyphens(text)
    assert (result, found) == (hidden, "<H>" in hidden)
    assert restore_term_hyphens(result) == text


def test_spaces_around_a_hidden_hyphen_go() -> None:
    assert restore_term_hyphens("GPT <H>  five\t<H> Nano is") == "GPT-five-Nano is"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<字|zi4>测试<行|XING2>走", 2),
        ("<<字|zi4>", 1),
        ("<|a> <a|> <a> a|b <a\n|b> <a|\nb>", 0),
        ("<|<a|b>", 1),
        ("<a|b|c>", 1),
        ("a < b | c > d", 1),
        ("no end <a|b", 0),
    ],
)
def test_annotations(text: str, count: int) -> None:
    hidden, annotations = hide_annotations(text)
    assert len(annotations) == count
    assert hidden.count("PRONPLACEHOLDER") == 2 * count
    assert restore_annotations(hidden, annotations) == text


@given(st.text(alphabet="<|>\na你-·1x", max_size=40))
def test_whatever_is_hidden_comes_back(text: str) -> None:
    hidden, annotations = hide_annotations(text)
    assert restore_annotations(hidden, annotations) == text
    names = hide_names(text)
    assert names.restore(names.text) == text


def test_linear_time() -> None:
    start = time.process_time()
    for part in ("<", "<|", "<a|", ">", "\n>", "你", "你·", "a", "a-", "a1", " ", "a."):
        text = part * 100_000
        hide_annotations(text)
        hide_pinyin(text)
        hide_names(text)
        hide_term_hyphens(text)
        restore_term_hyphens(text)
    assert time.process_time() - start < 8
