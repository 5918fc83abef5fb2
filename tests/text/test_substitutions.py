from __future__ import annotations

import pytest

from indextts2.text.substitutions import expand_contractions, replace_characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("He's got it", "He is got it"),
        ("bandit's hat", "bandit is hat"),
        ("WHAT'S this's", "WHAT is this is"),
        ("What’s up", "What’s up"),
        ("I'm John's", "I'm John's"),
    ],
)
def test_contractions(text: str, expected: str) -> None:
    assert expand_contractions(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("：；;，。！？\n·、", ",,,,.!? -,"),
        ("a...b,,,c，，，d……e…f", "a…b…c,,,d…e…f"),
        ('“”"‘’（）()《》【】[]「」', "'" * 17),
        ("—～~:", "---,"),
        ("%+@<>|/{}", "%+@<>|/{}"),
        ("....,,,,", "….…,"),
    ],
)
def test_characters(text: str, expected: str) -> None:
    assert replace_characters(text, "en") == expected
    assert replace_characters(text, "zh") == expected


def test_the_dollar_is_a_full_stop_in_chinese_only() -> None:
    assert replace_characters("你$好", "zh") == "你.好"
    assert replace_characters("a$b", "en") == "a$b"
