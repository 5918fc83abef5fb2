"""Pieces to segments of bounded length, each synthesised on its own (02 section 10).

Commas and hyphens always cut, sentence ends cut unless the sentence is tiny, and what is still too long is cut hard.
The parts are then packed again, greedily from the left, up to the bound.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from indextts2.errors import UsageError

_MIN_SENTENCE_TOKENS = 3


@dataclass(frozen=True)
class SegmentMarks:
    """Which pieces of a vocabulary cut a text. The defaults are those of the official vocabulary.

    `...` does not end a sentence there: an ellipsis never cuts.
    """

    sentence_ends: frozenset[str] = frozenset({".", "!", "?", "▁.", "▁?", "▁..."})
    commas: frozenset[str] = frozenset({",", "▁,"})
    hyphens: frozenset[str] = frozenset({"-"})
    apostrophes: frozenset[str] = frozenset({"'", "▁'"})


DEFAULT_MARKS = SegmentMarks()


def split_segments(
    tokens: Sequence[str],
    max_tokens: int = 120,
    quick_streaming_tokens: int = 0,
    marks: SegmentMarks = DEFAULT_MARKS,
    max_text_tokens: int = 600,
) -> list[list[str]]:
    """Split `tokens` into segments of at most `max_tokens` pieces, in linear time.

    An apostrophe that follows a sentence end is given to both segments, as in the reference, so a segment may have
    one piece more. With `quick_streaming_tokens` > 0 segments stay below half the bound until that many pieces have
    gone, so that the first sound comes early. `max_text_tokens` is the model's own limit (GPTConfig).
    Raises UsageError for a bound below 2 or above `max_text_tokens` - 1, or a negative `quick_streaming_tokens`.
    """
    if not 2 <= max_tokens < max_text_tokens:
        raise UsageError(f"max_tokens must lie in 2..{max_text_tokens - 1} for this model, not {max_tokens}")
    if quick_streaming_tokens < 0:
        raise UsageError(f"quick_streaming_tokens must be 0 or more, not {quick_streaming_tokens}")
    return _split(tokens, marks.sentence_ends, max_tokens, quick_streaming_tokens, marks)


def _split(tokens: Sequence[str], ends: Set[str], limit: int, quick: int, marks: SegmentMarks) -> list[list[str]]:
    """Cut at `ends`; at commas and hyphens by a call of its own for what has gathered, which packs its parts too.

    A comma or hyphen cuts the moment it arrives, so what has gathered holds at most one of them, as its last piece:
    the calls nest two deep and each piece is looked at a fixed number of times.
    """
    segments: list[list[str]] = []
    current: list[str] = []
    for index, token in enumerate(tokens):
        current.append(token)
        if token in marks.commas and ends.isdisjoint(marks.commas):
            segments += _split(current, marks.commas, limit, quick, marks)
        elif token in marks.hyphens and ends.isdisjoint(marks.hyphens):
            segments += _split(current, marks.hyphens, limit, quick, marks)
        elif len(current) > limit:
            segments += [current[:limit], current[limit:]]
        elif token in ends and len(current) >= _MIN_SENTENCE_TOKENS:
            # The closing quote also stays in `tokens` and opens the next segment: a habit of the reference.
            segments.append(current + [t for t in tokens[index + 1 : index + 2] if t in marks.apostrophes])
        else:
            continue
        current = []
    return _pack([*segments, current], limit, quick)


def _pack(segments: list[list[str]], limit: int, quick: int) -> list[list[str]]:
    """Join neighbours that fit together; before `quick` pieces have gone by, only up to half the limit."""
    packed: list[list[str]] = []
    total = 0
    for segment in segments:
        total += len(segment)
        joined = len(packed[-1]) + len(segment) if packed else limit + 1
        if packed and (joined <= limit if total > quick else joined <= limit / 2):
            packed[-1].extend(segment)
        elif segment:
            packed.append(list(segment))
    return packed
