"""Sentences out of a text that arrives in pieces."""

from __future__ import annotations

import pytest

from indextts2.errors import TextError
from indextts2.text.incremental import SentenceBuffer, sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One.", "Two!", "Three?"]),
        ("It costs 3.14 dollars. Good.", ["It costs 3.14 dollars.", "Good."]),
        ("Mr. Smith met Dr. J. R. Jones. They left.", ["Mr. Smith met Dr. J. R. Jones.", "They left."]),
        ('He said "Stop!" and left. Why…', ['He said "Stop!"', "and left.", "Why…"]),
        ("第一句。第二句！第三句", ["第一句。", "第二句！", "第三句"]),
        ("他说：“走吧。”然后走了。", ["他说：“走吧。”", "然后走了。"]),
        ("A title\n\nA text", ["A title", "A text"]),
        ("  no mark at all  ", ["no mark at all"]),
        ("", []),
        (" \n ", []),
    ],
)
def test_sentences_do_not_depend_on_the_pieces(text: str, expected: list[str]) -> None:
    assert list(sentences([text])) == expected
    assert list(sentences(text)) == expected
    assert list(sentences([text[:7], "", text[7:]])) == expected


def test_a_sentence_is_given_as_soon_as_something_follows() -> None:
    buffer = SentenceBuffer()
    assert buffer.push("Hello world") == []
    assert buffer.push(".") == []
    assert buffer.push(" And") == ["Hello world."]
    assert buffer.push("\n") == ["And"]
    assert buffer.push("你好。") == []
    assert buffer.push("rest") == ["你好。"]
    assert buffer.finish() == ["rest"]
    assert buffer.finish() == []


def test_a_text_without_marks_does_not_pile_up() -> None:
    words = ["word "] * 2000
    found = list(sentences(words))
    assert " ".join(found) == ("word " * 2000).strip()
    assert max(map(len, found)) <= 2000
    with pytest.raises(TextError, match="characters in a row"):
        list(sentences(["1" * 1500, "2" * 1500]))
