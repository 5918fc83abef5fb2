"""Parts of a text that the external grammars must not touch: hidden behind placeholders, put back afterwards.

Placeholders are numbered with letters (a, b, …, z, aa, ab, …), because a digit would be read aloud by the grammar.
Distinct matches are replaced longest first, so that the result never depends on the order of a set: with "an1" and
"xuan1" in one text, "xuan1" is hidden whole. All patterns run in linear time. Source: 02 sections 2 and 6.1 to 6.3.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

from indextts2.text.language import PINYIN

_HAN = "[\u4e00-\u9fff]"
# The lookbehind starts a match at the head of a run only: no match is lost, and long runs are read once.
_NAME = re.compile(rf"(?<!{_HAN}){_HAN}++(?:[-·—]{_HAN}+){{1,2}}")
_TECHNICAL_TERM = re.compile(r"(?<![A-Za-z0-9])[0-9]*+([A-Za-z][A-Za-z0-9]*+(?:-[A-Za-z0-9]+)+)")
_HIDDEN_HYPHEN = "<H>"
_HIDDEN_HYPHEN_SPACED = re.compile(rf"(?<!\s)\s*+{_HIDDEN_HYPHEN}\s*")
_FRONTED_U = re.compile(r"([jqx])[uü]((?:n|e|an)*)(\d)", re.IGNORECASE)
_ANNOTATION_MARK = "PRONPLACEHOLDER"
_ANNOTATION_PLACEHOLDER = re.compile(f"{_ANNOTATION_MARK}([a-z]+){_ANNOTATION_MARK}")


def letters_of(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa, 27 -> ab, …"""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("a") + rest) + letters
    return letters


def _longest_first(matches: Iterable[str]) -> list[str]:
    return sorted(dict.fromkeys(matches), key=len, reverse=True)


class Hidden:
    """What one protection took out of a text: `text` with placeholders `<kind_letters>`, and the way back."""

    def __init__(self, text: str, found: Iterable[str], kind: str) -> None:
        self._placeholder = re.compile(f"<{kind}_([a-z]+)>")
        self._originals: dict[str, str] = {}
        for index, original in enumerate(_longest_first(found)):
            letters = letters_of(index)
            self._originals[letters] = original
            text = text.replace(original, f"<{kind}_{letters}>")
        self.text = text

    def restore(self, text: str, correct: Callable[[str], str] = str) -> str:
        """Put the originals back into `text`, each passed through `correct`."""

        def original_of(match: re.Match[str]) -> str:
            original = self._originals.get(match[1])
            return match[0] if original is None else correct(original)

        return self._placeholder.sub(original_of, text) if self._originals else text


def hide_pinyin(text: str) -> Hidden:
    """Hide toned pinyin such as `xuan4`; every occurrence of a found string is hidden, also inside a longer word."""
    return Hidden(text, PINYIN.findall(text), "pinyin")


def correct_pinyin(pinyin: str) -> str:
    """The spelling of the vocabulary: after j, q and x the letter u means ü and is written V (xuan4 -> XVAN4)."""
    if pinyin[0] not in "jqxJQX":
        return pinyin
    return _FRONTED_U.sub(r"\1v\2\3", pinyin).upper()


def hide_names(text: str) -> Hidden:
    """Hide transcribed names such as `约瑟夫·高登-莱维特`, whose dashes would be read as minus or "to"."""
    return Hidden(text, _NAME.findall(text), "n")


def hide_term_hyphens(text: str) -> tuple[str, bool]:
    """Hide the hyphens of terms such as `GPT-5-Nano`; digits stay, and are spoken. Also: was any term found?"""
    terms = _longest_first(_TECHNICAL_TERM.findall(text))
    for term in terms:
        text = text.replace(term, term.replace("-", _HIDDEN_HYPHEN))
    return text, bool(terms)


def restore_term_hyphens(text: str) -> str:
    """Bring the hyphens back, dropping the spaces that a grammar put around them."""
    return _HIDDEN_HYPHEN_SPACED.sub("-", text)


def _find_annotation(text: str, start: int, end: int) -> int:
    """Where `<word|reading` begins in text[start:end], the part before a `>`; -1 if nowhere."""
    begin = text.find("<", start, end)
    while begin >= 0:
        bar = text.find("|", begin, end)
        if bar < 0 or bar + 1 == end:
            return -1
        if bar > begin + 1:
            return begin
        begin = text.find("<", bar, end)
    return -1


def hide_annotations(text: str) -> tuple[str, list[str]]:
    """Hide pronunciation annotations `<word|reading>`. They have no meaning in version 2, but survive unchanged."""
    parts: list[str] = []
    annotations: list[str] = []
    done = line = 0
    end = text.find(">")
    while end >= 0:
        line = max(line, text.rfind("\n", line, end) + 1)
        begin = _find_annotation(text, line, end)
        if begin >= 0:
            parts += [text[done:begin], _ANNOTATION_MARK, letters_of(len(annotations)), _ANNOTATION_MARK]
            annotations.append(text[begin : end + 1])
            done = end + 1
        line = end + 1
        end = text.find(">", line)
    return "".join([*parts, text[done:]]), annotations


def restore_annotations(text: str, annotations: list[str]) -> str:
    """Put the annotations back verbatim."""
    originals = {letters_of(index): annotation for index, annotation in enumerate(annotations)}
    return _ANNOTATION_PLACEHOLDER.sub(lambda match: originals.get(match[1], match[0]), text) if originals else text
