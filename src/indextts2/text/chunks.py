"""Long texts in portions for the grammars, which need up to 0.3 MB of memory and 5 ms for each character.

A text of up to `MAX_CHUNK_CHARACTERS` is read whole, exactly as the reference reads it. A longer one is cut where no
number, date or word can lie across the cut. A run that offers no such place is refused before any grammar runs, so
that a hundred thousand digits fail at once.
"""

from __future__ import annotations

import re

from indextts2.errors import TextError

MAX_CHUNK_CHARACTERS = 1000

_NEUTRAL = r"[^\dA-Za-z<>_.,:/%$€£¥￥+\s-]"
# The best places first; a cut lies at the end of the match.
_CUTS = [
    re.compile(pattern)
    for pattern in (
        r"\n\s*",
        r"[.!?…][\"'”’)\]]*\s+|[。！？…][\"'”’）】」』》]*\s*",
        r"[,;:]\s+|[，；、]\s*",
        r"\s+",
        rf"{_NEUTRAL}(?={_NEUTRAL})",
        r"(?<=[A-Za-z])[.,;:!?/](?=[A-Za-z])",
    )
]


def _last_cut(text: str, start: int, end: int) -> int:
    """The best place to cut in text[start:end]: the best kind in the later half, else the best kind anywhere."""
    last = []
    for pattern in _CUTS:
        ends = [match.end() for match in pattern.finditer(text, start, end)]
        last.append(ends[-1] if ends else start)
        if last[-1] > (start + end) // 2:
            return last[-1]
    return next((cut for cut in last if cut > start), start)


def split_chunks(text: str, limit: int = MAX_CHUNK_CHARACTERS) -> list[str]:
    """Cut `text` into parts of at most `limit` characters that together are `text`; linear time.

    Raises TextError for a run longer than `limit` without a place to cut (a number of a thousand digits).
    """
    chunks = []
    start = 0
    while len(text) - start > limit:
        cut = _last_cut(text, start, start + limit)
        if cut == start:
            raise TextError(
                f"the text holds more than {limit} characters in a row without a space or a sentence mark, "
                f"from character {start + 1}: {text[start : start + 30]!r}…; shorten the run or put spaces into it"
            )
        chunks.append(text[start:cut])
        start = cut
    return [*chunks, text[start:]]
