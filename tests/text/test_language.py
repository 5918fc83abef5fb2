from __future__ import annotations

import time
from pathlib import Path

import pytest

from indextts2.text.language import PINYIN, use_chinese


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Room A5", True),
        ("Intel i5 processor", True),
        ("Visit e2 now", True),
        ("H2O2 now", True),
        ("123", True),
        ("3.14", True),
        ("...", True),
        ("", True),
        ("test@abc.com please reply", False),
        ("user@example.com", True),
        ("user@example.com\n", True),
        ("user@mail.example.com", False),
        ("Hello 世界", True),
        ("Room A6", False),
        ("こんにちは", True),
        ("xuan4", True),
        ("XUAN4", True),
    ],
)
def test_decision(text: str, expected: bool) -> None:
    assert use_chinese(text) is expected


@pytest.mark.parametrize(
    ("text", "matches"),
    [
        ("xuan45", ["xuan4"]),
        ("A10", ["A1"]),
        ("be1", ["be1"]),
        ("BU9", []),
        ("beta1", []),
        ("xün2", []),
        ("lüe4 xüan1 nü3", ["lüe4", "xüan1", "nü3"]),
        ("ng5 er2 m2", ["ng5", "er2"]),
        ("你hao3, wo3", ["hao3", "wo3"]),
        ("1hao3 _hao3", ["hao3", "hao3"]),
        ("hao 3 hao6 hao0", []),
    ],
)
def test_pinyin(text: str, matches: list[str]) -> None:
    assert PINYIN.findall(text) == matches


def test_every_entry_of_the_pinyin_vocabulary_matches(reference: Path) -> None:
    entries = (reference / "checkpoint_files" / "pinyin.vocab").read_text(encoding="utf-8").split()
    assert len(entries) == 1728
    assert [entry for entry in entries if not PINYIN.fullmatch(entry)] == []


def test_linear_time() -> None:
    start = time.process_time()
    for part in ("a.", "a@", "a1", "xuan", "1"):
        use_chinese(part * 100_000)
    assert time.process_time() - start < 3
