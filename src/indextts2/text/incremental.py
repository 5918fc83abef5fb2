"""Sentences from a text that is still arriving, each as soon as it is complete."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from indextts2.text.chunks import MAX_CHUNK_CHARACTERS, split_chunks

# A full stop ends a sentence before a blank (a number may go on), a Chinese one before whatever is no closing mark.
_END = re.compile(r"[.!?…]+[\"'”’)\]]*(?=\s)|[。！？]+[\"'”’）】」』》]*(?=[^。！？\"'”’）】」』》])|\n")
# A full stop behind these, or behind a single letter, ends nothing.
_ABBREVIATION = re.compile(
    r"(?:^|[\s(\"'“‘])(?:[A-Za-z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|etc|e\.g|i\.e|No|Inc|Ltd|Co|Mt|Fig|approx)\.$"
)


class SentenceBuffer:
    """Collects text and gives away the sentences in it.

    A sentence mark ends a sentence once something follows it, so that `3.` may become `3.14`. Without any mark a text
    is cut after a thousand characters.
    """

    def __init__(self) -> None:
        self._text = ""

    def push(self, text: str) -> list[str]:
        """Add text; the sentences that are complete now, without the blanks around them."""
        self._text += text
        found, start = [], 0
        for match in _END.finditer(self._text):
            sentence = self._text[start : match.end()]
            if _ABBREVIATION.search(sentence):
                continue
            found.append(sentence)
            start = match.end()
        self._text = self._text[start:]
        if len(self._text) > 2 * MAX_CHUNK_CHARACTERS:
            *complete, self._text = split_chunks(self._text)
            found += complete
        return _spoken(found)

    def finish(self) -> list[str]:
        """What is left, as the last sentence; none if nothing is."""
        rest, self._text = self._text, ""
        return _spoken([rest])


def _spoken(found: list[str]) -> list[str]:
    return [stripped for sentence in found if (stripped := sentence.strip())]


def sentences(texts: Iterable[str]) -> Iterator[str]:
    """The sentences of a text that comes in pieces of any size.

    Raises:
        TextError: thousands of characters without a blank or a mark.
    """
    buffer = SentenceBuffer()
    for text in texts:
        yield from buffer.push(text)
    yield from buffer.finish()
