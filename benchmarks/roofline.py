"""What this machine sustains, measured in the run whose floors it gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.clock import Clock, seconds
from indextts2.models.dense import linear

MATRIX_SIZE = 2048
READ_NUMBERS = 1 << 27  # 512 MiB of float32: far more than any cache


@dataclass(frozen=True)
class Machine:
    """Sustained rates of the threads in use: float32 matrix products, and reading memory."""

    flop_per_second: float
    bytes_per_second: float


@torch.inference_mode()
def measure(repeats: int = 5, clock: Clock = time.perf_counter) -> Machine:
    """The best of several products of large matrices, and of several sums over a large vector.

    The products are tried with torch's own function and with the one that our modules use.
    """
    matrix = torch.randn(MATRIX_SIZE, MATRIX_SIZE)
    product = min(_best(partial(function, matrix, matrix), repeats, clock) for function in (F.linear, linear))
    vector = torch.ones(READ_NUMBERS)
    read = _best(vector.sum, repeats, clock)
    return Machine(2 * MATRIX_SIZE**3 / product, 4 * READ_NUMBERS / read)


def _best(function: Callable[[], object], repeats: int, clock: Clock) -> float:
    function()
    return min(seconds(function, clock) for _ in range(repeats))
