"""The worker threads of OpenMP, which compute within torch's operations."""

from __future__ import annotations

import ctypes
import sys

SOFT = 1
"""omp_pause_soft of omp.h: settings are kept."""


def release_workers() -> None:
    """Let go of the workers that operations of the calling thread have used; the next operation starts new ones.

    Every thread that computes has workers of its own, which stay when it does other things. GNU's runtime lets workers
    spin for a moment before they sleep, but only while all that were ever started and still live are no more than the
    cores. Otherwise they are put to sleep and woken at every operation, which small operations feel. So whoever leaves
    the computing to another thread lets go of its workers first.
    """
    if sys.platform != "linux":
        return
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)  # not before torch is loaded
    if pause is not None:
        pause(SOFT)
