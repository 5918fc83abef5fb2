"""Attention of a few new rows over a cache, in C, for inference in float32.

Legend: N new rows, R rows held, H heads, K head width.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indextts2.native.library import Queue, loaded, run, usable

# With more rows than this, matrix products of them are faster.
MOST_ROWS = 32
# Fewer multiply-adds than this are not worth waking up another thread.
PRODUCTS_PER_THREAD = 1 << 17


class AttentionTask(ctypes.Structure):
    """Layout of attention.c."""

    _fields_ = (
        ("queue", Queue),
        *((name, ctypes.c_int64) for name in ("rows", "heads", "width", "held", "head_stride", "worker")),
        *((name, ctypes.c_void_p) for name in ("qkv", "mask", "keys", "values", "result", "scratch")),
    )


def attends(qkv: Tensor, keys: Tensor) -> bool:
    """Whether `attend_rows` can compute these, on a processor where that was measured to be faster than PyTorch."""
    few = len(qkv) <= MOST_ROWS and not torch.is_grad_enabled()
    return few and usable(qkv, keys) and is_fast() and keys.shape[3] % loaded().attention_width_multiple() == 0


def is_fast() -> bool:
    """Whether the processor has the instructions with which the kernel was measured to be faster than PyTorch."""
    return bool(loaded().attention_is_fast())


def attend_rows(qkv: Tensor, keys: Tensor, values: Tensor, held: int, mask: Tensor | None) -> Tensor:
    """Append rows to the cache of a layer, and attend to all of it; without gradients.

    Args:
        qkv: queries, keys and values (N, 3 H K) of the new rows.
        keys: buffer without gaps (1, H, at least R + N, K), as `values`; rows from R on are written.
        held: R.
        mask: (N, R + N), added to the scores; None if every row attends to all.

    Returns:
        (N, H K). A row gives the same bits whatever the queries of other rows, and on any number of threads.
    """
    qkv = qkv.contiguous()
    mask = None if mask is None else mask.contiguous()
    heads, capacity, width = keys.shape[1:]
    rows, every = len(qkv), held + len(qkv)
    threads = max(min(torch.get_num_threads(), heads, rows * every * heads * width // PRODUCTS_PER_THREAD), 1)
    result, scratch = qkv.new_empty(rows, heads * width), qkv.new_empty(threads, every)
    task = AttentionTask(
        Queue(heads, 0),
        *(rows, heads, width, held, capacity * width, 0),
        *(qkv.data_ptr(), None if mask is None else mask.data_ptr()),
        *(keys.data_ptr(), values.data_ptr(), result.data_ptr(), scratch.data_ptr()),
    )
    run(loaded().attend_rows, task, threads)
    return result
