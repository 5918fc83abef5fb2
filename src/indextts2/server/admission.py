"""Who may come in, and whose turn it is: a bounded number of requests, served in the order in which they came.

All of it runs on the event loop's thread, so it needs no locks.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from time import monotonic

from indextts2.server.errors import ApiError, not_available

# Weight of the newest request in the running mean of how long one takes.
MEAN_WEIGHT = 0.2
MAX_RETRY_SECONDS = 60


class Admission:
    """At most `max_running` turns at a time, and `max_waiting` more requests inside."""

    def __init__(self, max_running: int, max_waiting: int, queue_seconds: float) -> None:
        self.max_running = max_running
        self.max_waiting = max_waiting
        self.queue_seconds = queue_seconds
        self.draining = False
        self.inside = 0
        self.running = 0
        self.last_activity = monotonic()
        self._queue: deque[asyncio.Future[None]] = deque()
        self._mean_seconds = 2.0

    @property
    def waiting(self) -> int:
        """Turns that are waited for."""
        return len(self._queue)

    @property
    def retry_after_seconds(self) -> int:
        """When a place is likely to be free: the mean length of a turn, for each that stands before."""
        ahead = 1 + self.waiting / self.max_running
        return max(1, min(MAX_RETRY_SECONDS, math.ceil(self._mean_seconds * ahead)))

    def check_open(self) -> None:
        """ApiError 503 while the server shuts down."""
        if self.draining:
            raise not_available("the server is shutting down", "draining", 5)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Be one of the requests inside.

        Raises:
            ApiError: 429 when all places are taken, 503 while the server shuts down.
        """
        self.check_open()
        if self.inside >= self.max_running + self.max_waiting:
            raise ApiError(
                429,
                f"{self.inside} requests are running or waiting, which is the limit; try again later",
                code="queue_full",
                headers={"Retry-After": str(self.retry_after_seconds)},
            )
        self.inside += 1
        self.last_activity = monotonic()
        try:
            yield
        finally:
            self.inside -= 1
            self.last_activity = monotonic()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn and hold it.

        Raises:
            ApiError: 503 when none came within `queue_seconds`.
        """
        await self._acquire()
        start = monotonic()
        try:
            yield
        finally:
            self._mean_seconds += MEAN_WEIGHT * (monotonic() - start - self._mean_seconds)
            self._release()

    async def idle(self) -> None:
        """Return once nobody is inside."""
        while self.inside:
            await asyncio.sleep(0.05)

    async def _acquire(self) -> None:
        if self.running < self.max_running and not self._queue:
            self.running += 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            await asyncio.wait_for(asyncio.shield(turn), self.queue_seconds)
        except BaseException as error:
            if turn.done():
                self._release()
            else:
                turn.cancel()
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                message = f"the request waited {self.queue_seconds:g} s for its turn; try again later"
                raise not_available(message, "queue_timeout", self.retry_after_seconds) from None
            raise

    def _release(self) -> None:
        """Hand the turn to the one who has waited longest."""
        if self._queue:
            self._queue.popleft().set_result(None)
        else:
            self.running -= 1
