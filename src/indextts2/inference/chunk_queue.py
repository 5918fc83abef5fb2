"""A bounded queue of audio between the thread that makes it and the one that takes it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from threading import Condition

from indextts2.errors import Cancelled, UsageError
from indextts2.types import AudioChunk

MAX_CHUNKS = 8


class ChunkQueue:
    """At most `capacity` chunks wait in it; then comes the end: nothing more, or an error.

    The maker calls `full`, `put`, `close` and asks `cancelled`; the taker iterates and may `cancel` at any time.
    """

    def __init__(self, capacity: int = MAX_CHUNKS, on_change: Callable[[], None] | None = None) -> None:
        """`on_change` is called, without any lock held, when room was made or the taker has cancelled."""
        if capacity < 1:
            raise UsageError(f"a queue holds at least 1 chunk, not {capacity}")
        self._capacity = capacity
        self._on_change = on_change
        self._chunks: deque[AudioChunk] = deque()
        self._changed = Condition()
        self._closed = False
        self._cancelled = False
        self._error: BaseException | None = None

    def __len__(self) -> int:
        return len(self._chunks)

    # The maker's side

    @property
    def full(self) -> bool:
        """Whether the maker should wait."""
        return len(self._chunks) >= self._capacity

    @property
    def cancelled(self) -> bool:
        """Whether the taker wants no more."""
        return self._cancelled

    def put(self, chunk: AudioChunk) -> None:
        """Add a chunk, waiting for room. Raises Cancelled once the taker has cancelled."""
        with self._changed:
            self._changed.wait_for(lambda: self._cancelled or not self.full)
            if self._cancelled:
                raise Cancelled("the synthesis was cancelled")
            self._chunks.append(chunk)
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """Say that nothing follows; with `error` the taker gets it after the chunks that are waiting."""
        with self._changed:
            if not self._closed:
                self._closed, self._error = True, error
            self._changed.notify_all()

    # The taker's side

    @property
    def done(self) -> bool:
        """Whether nothing more is being made; chunks may still wait."""
        return self._closed

    @property
    def error(self) -> BaseException | None:
        """What ended it, None while it runs or if it ended well."""
        return self._error

    def cancel(self) -> None:
        """Want no more: waiting chunks are dropped and the maker is told. No effect once all is taken."""
        with self._changed:
            if not (self._closed and not self._chunks):
                self._cancelled = True
                self._chunks.clear()
            self._changed.notify_all()
        self._tell()

    def get(self, timeout_seconds: float | None = None) -> AudioChunk | None:
        """The next chunk, waiting for it; None at the end.

        Raises:
            TimeoutError: nothing came in time. Cancelled: see `cancel`. The maker's error, if that ended it.
        """
        with self._changed:
            ready = self._changed.wait_for(lambda: self._chunks or self._closed or self._cancelled, timeout_seconds)
            if not ready:
                raise TimeoutError(f"no audio within {timeout_seconds} s")
            if self._chunks:
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            elif self._cancelled:
                raise Cancelled("the synthesis was cancelled")
            elif self._error is not None:
                raise self._error
            else:
                return None
        self._tell()
        return chunk

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until nothing more is being made; False if that took longer."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout_seconds)

    def __iter__(self) -> Iterator[AudioChunk]:
        while (chunk := self.get()) is not None:
            yield chunk

    def _tell(self) -> None:
        if self._on_change is not None:
            self._on_change()


class Stopwatch:
    """The time at which it was made (`start`), and seconds from then to marks on the way."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.marks: dict[str, float] = {}

    def mark(self, name: str) -> None:
        """Remember the time of the first call under this name."""
        self.marks.setdefault(name, time.perf_counter() - self.start)
