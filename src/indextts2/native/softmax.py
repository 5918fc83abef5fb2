"""Softmax of rows in place, in C, for inference in float32."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indextts2.native.library import Queue, loaded, run, usable

# Fewer numbers than this are not worth waking up another thread.
NUMBERS_PER_THREAD = 32768


class SoftmaxTask(ctypes.Structure):
    """Layout of softmax.c."""

    _fields_ = (
        ("queue", Queue),
        *((name, ctypes.c_int64) for name in ("rows", "columns")),
        ("x", ctypes.c_void_p),
    )


def is_fast() -> bool:
    """Whether the processor has the instructions with which the kernel was measured to be faster than PyTorch."""
    return bool(loaded().softmax_is_fast())


def softmax_(x: Tensor) -> Tensor:
    """Replace the rows of `x` (..., C), without gaps and gradients, by their softmax. Returns `x`.

    Float32 goes to the kernel where that is faster than PyTorch; it gives the same bits on any number of threads.
    """
    if not (x.numel() and usable(x) and is_fast()):
        return torch.softmax(x, dim=-1, out=x)
    columns = x.shape[-1]
    rows = x.numel() // columns
    pieces = loaded().softmax_pieces(rows)
    threads = max(min(torch.get_num_threads(), pieces, x.numel() // NUMBERS_PER_THREAD), 1)
    run(loaded().softmax_rows, SoftmaxTask(Queue(pieces, 0), rows, columns, x.data_ptr()), threads)
    return x
