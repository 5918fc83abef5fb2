"""Threads that compute side by side, and how many threads each of their operations may use.

Two flows in two threads of one core each take hardly longer than one of them alone, while two threads within one small
operation spend much of their time waiting for each other. So where there is more to do than one piece of work, the
cores are divided among pieces; a piece that is alone gets all of them.
"""

from __future__ import annotations

import threading

import torch

from indextts2.errors import UsageError


def divisible() -> bool:
    """Whether every thread has its own number of threads within an operation: only where torch uses OpenMP."""
    return "parallel backend: OpenMP" in torch.__config__.parallel_info()


def lane_count(asked: int | None, device: torch.device, max_running: int) -> int:
    """How many pieces of work are computed at a time; None: as many as there are cores, on a CPU.

    Other devices take their work in order anyway.

    Raises:
        UsageError: fewer than one is asked for.
    """
    if asked is None:
        most = torch.get_num_threads() if device.type == "cpu" and divisible() else 1
    elif asked < 1:
        raise UsageError(f"lanes must be at least 1, not {asked}")
    else:
        most = asked
    return min(most, max_running)


def use_threads(count: int, default: int) -> None:
    """Let operations of the calling thread use `count` threads; threads that begin later still get `default`."""
    if torch.get_num_threads() == count or not divisible():
        return
    torch.set_num_threads(count)
    if count != default:
        # A thread begins with the number that any thread has set last.
        restorer = threading.Thread(target=torch.set_num_threads, args=(default,))
        restorer.start()
        restorer.join()
