"""Products of matrices in C, for inference in float32.

Legend: R rows, I inputs, C columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indextts2.native.library import Queue, loaded, run, usable

# Fewer multiply-adds than this are not worth waking up another thread.
PRODUCTS_PER_THREAD = 1 << 20
# Several threads find this many pieces each, so that one that is held up by other programs does fewer of them.
PIECES_PER_THREAD = 4
# Pieces are multiples of so many rows or columns, whole register blocks of most processors.
ROW_MULTIPLE, COLUMN_MULTIPLE = 14, 32


class MatrixTask(ctypes.Structure):
    """Layout of matrix.c."""

    _fields_ = (
        ("queue", Queue),
        *((name, ctypes.c_int64) for name in ("rows", "inputs", "columns", "piece_rows", "piece_columns")),
        *((name, ctypes.c_int64) for name in ("left_stride", "right_stride", "result_stride", "worker")),
        *((name, ctypes.c_void_p) for name in ("left", "right", "result", "scratch")),
    )


def addable(*matrices: Tensor) -> bool:
    """Whether `add_product_` can use these, on a processor where that was measured to be faster than oneDNN."""
    dense_rows = all(matrix.stride(1) == 1 and matrix.numel() for matrix in matrices)
    return dense_rows and usable(*matrices) and bool(loaded().matrix_is_fast())


def add_product_(result: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Add (R,I) times (I,C) to `result` (R,C) without gradients; rows may have gaps between them. Returns `result`.

    A row gives the same bits whatever other rows there are, on any number of threads, and as from `multiply_rows`.
    """
    rows, inputs, columns = *left.shape, right.shape[1]
    threads = max(min(torch.get_num_threads(), rows * inputs * columns // PRODUCTS_PER_THREAD), 1)
    wanted = 1 if threads == 1 else threads * PIECES_PER_THREAD
    piece_rows, piece_columns = rows, columns
    if columns >= rows:
        piece_columns = _share(columns, wanted, COLUMN_MULTIPLE)
    else:
        piece_rows = _share(rows, wanted, ROW_MULTIPLE)
    pieces = -(-rows // piece_rows) * -(-columns // piece_columns)
    threads = min(threads, pieces)
    scratch = result.new_empty(threads, loaded().matrix_scratch())
    task = MatrixTask(
        Queue(pieces, 0),
        *(rows, inputs, columns, piece_rows, piece_columns),
        *(left.stride(0), right.stride(0), result.stride(0), 0),
        *(left.data_ptr(), right.data_ptr(), result.data_ptr(), scratch.data_ptr()),
    )
    run(loaded().add_product, task, threads)
    return result


def _share(whole: int, pieces: int, multiple: int) -> int:
    """One of at most so many pieces of `whole`, a multiple of `multiple`."""
    return -(-whole // (pieces * multiple)) * multiple
