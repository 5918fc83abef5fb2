"""Products of a few rows with a matrix in C, for inference in float32.

Legend: R rows, I inputs, O outputs.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indextts2.native.library import Queue, loaded, run, usable

# With more rows than this, libraries that keep a part of the matrix in the cache are as fast.
MOST_ROWS = 32
# Fewer weights than this are not worth waking up another thread.
WEIGHTS_PER_THREAD = 1 << 17
# Several threads find this many pieces each, so that one that is held up by other programs does fewer of them.
PIECES_PER_THREAD = 4
# Pieces are multiples of so many columns, whole cache lines.
COLUMN_MULTIPLE = 16


class ProductTask(ctypes.Structure):
    """Layout of product.c."""

    _fields_ = (
        ("queue", Queue),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "outputs", "columns")),
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "result")),
    )


def few_rows(x: Tensor, weight: Tensor) -> bool:
    """Whether `multiply_rows` can compute these, on a processor where that is faster than PyTorch."""
    few = x.numel() <= MOST_ROWS * weight.shape[0]
    return few and weight.is_contiguous() and usable(x, weight) and bool(loaded().product_is_fast())


def multiply_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x W + bias without gradients: (..., I), `weight` (I,O) and `bias` (O), both without gaps -> (..., O).

    A row gives the same bits whatever other rows there are, and on any number of threads.
    """
    x = x.contiguous()
    inputs, outputs = weight.shape
    threads = max(min(torch.get_num_threads(), weight.numel() // WEIGHTS_PER_THREAD), 1)
    wanted = 1 if threads == 1 else threads * PIECES_PER_THREAD
    columns = -(-outputs // (wanted * COLUMN_MULTIPLE)) * COLUMN_MULTIPLE
    pieces = -(-outputs // columns)
    result = x.new_empty(*x.shape[:-1], outputs)
    task = ProductTask(
        Queue(pieces, 0),
        *(x.numel() // inputs, inputs, outputs, columns),
        *(x.data_ptr(), weight.data_ptr(), None if bias is None else bias.data_ptr(), result.data_ptr()),
    )
    run(loaded().multiply_rows, task, min(threads, pieces))
    return result
