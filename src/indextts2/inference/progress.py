"""What a running synthesis tells its caller, and how the caller stops it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from indextts2.errors import Cancelled


@dataclass(frozen=True)
class Progress:
    """`done` of `total` units of `stage` in segment `segment` of `segments` (`total` None: not known)."""

    stage: str
    done: int
    total: int | None
    segment: int = 0
    segments: int = 1


ProgressCallback = Callable[[Progress], None]
CancelCheck = Callable[[], bool]


@dataclass
class Run:
    """State of one request: its callbacks, its clock and its counts. Never shared between requests.

    `segments` is the number of segments known so far.
    """

    on_progress: ProgressCallback | None = None
    cancel: CancelCheck | None = None
    timings: dict[str, float] = field(default_factory=dict)
    segment: int = 0
    segments: int = 1
    text_tokens: int = 0
    codes: int = 0
    segment_codes: int = 0

    def check(self) -> None:
        """Raise Cancelled if the caller wants to stop."""
        if self.cancel is not None and self.cancel():
            raise Cancelled("the synthesis was cancelled")

    def report(self, stage: str, done: int, total: int | None) -> None:
        """Tell the caller how far a stage is, and give it the chance to stop."""
        self.check()
        if self.on_progress is not None:
            self.on_progress(Progress(stage, done, total, self.segment, self.segments))

    def count_code(self, limit: int) -> None:
        """Report one more code of the segment, of at most `limit`."""
        self.codes += 1
        self.segment_codes += 1
        self.report("gpt", self.segment_codes, limit)

    def begin_segment(self, index: int) -> None:
        """What follows belongs to this segment."""
        self.segment, self.segment_codes = index, 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `timings[name]` (seconds)."""
        self.check()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start
