"""What the command line shows: messages and progress on stderr, tables as plain text."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from indextts2.inference.progress import Progress

LABELS = {"gpt": "speaking", "flow": "painting the mel", "vocoder": "making sound"}


def say(message: str) -> None:
    """A message for a person: always on stderr, so that stdout stays usable in pipes."""
    print(message, file=sys.stderr, flush=True)


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Columns padded to their widest cell; numbers (all columns but the first) are right-aligned."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * w for w in widths], *rows]
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


class Bar:
    """A tqdm bar on stderr that exists only on a terminal; silent elsewhere."""

    def __init__(self, enabled: bool | None = None) -> None:
        self.enabled = sys.stderr.isatty() if enabled is None else enabled
        self._bar: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _start(self, total: int | None, label: str, unit: str = "it") -> None:
        from tqdm import tqdm

        self.close()
        self._bar = tqdm(total=total, leave=False, file=sys.stderr, desc=label, unit=unit, unit_scale=unit == "B")


class ProgressBar(Bar):
    """One bar per segment and stage of a synthesis."""

    _key: tuple[int, str] | None = None

    def __call__(self, progress: Progress) -> None:
        """Draw `progress`; a new segment or stage starts a new bar."""
        if not self.enabled:
            return
        key = (progress.segment, progress.stage)
        if key != self._key:
            self._key = key
            label = LABELS.get(progress.stage, progress.stage)
            self._start(progress.total, f"[{progress.segment + 1}/{progress.segments}] {label}")
        self._bar.update(progress.done - self._bar.n)


class StepBar(Bar):
    """One bar over named steps."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show that step `done` of `total`, called `what`, begins."""
        if not self.enabled:
            return
        if self._bar is None:
            self._start(total, what)
        self._bar.set_description(what)
        self._bar.update(done - self._bar.n)
