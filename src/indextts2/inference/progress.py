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
    """State of one request: its callbacks and its clock. Never shared between requests."""

    on_progress: ProgressCallback | None = None
    cancel: CancelCheck | None = None
    timings: dict[str, float] = field(default_factory=dict)
    segment: int = 0
    segments: int = 1
    text_tokens: int = 0
    codes: int = 0

    def check(self) -> None:
        """Raise Cancelled if the caller wants to stop."""
        if self.cancel is not None and self.cancel():
            raise Cancelled("the synthesis was cancelled")

    def report(self, stage: str, done: int, total: int | None) -> None:
        """Tell the caller how far a stage is, and give it the chance to stop."""
        self.check()
        if self.on_progress is not None:
            self.on_progress(Progress(stage, done, total, self.segment, self.segments))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `timings[name]` (seconds)."""
        self.check()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[name] = self.timings.get(name, 0.0) + time.perf_counter() - start
