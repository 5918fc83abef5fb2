"""The C library: whether there is one, and how its functions run on several threads.

A kernel is a function of one argument, a task structure that begins with a queue of pieces. Every thread calls it with
the same task and claims pieces until none is left, so results do not depend on the number of threads.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

# Set to 0: the package computes with PyTorch alone.
SWITCH_VARIABLE = "INDEXTTS2_NATIVE"
# That of kernels.h.
INTERFACE_VERSION = 7
LIBRARY_FILE = Path(__file__).with_name("_kernels.dll" if sys.platform == "win32" else "_kernels.so")
# Others (of tracing, quantisation, distribution) may have no memory of their own.
PLAIN_TYPES = (Tensor, torch.nn.Parameter)
REINSTALL = "install the package again with a C compiler at hand to use it"


class Queue(ctypes.Structure):
    """First fields of every task: the number of pieces, and the next one to be claimed."""

    _fields_ = (("pieces", ctypes.c_int64), ("next", ctypes.c_int64))


class Native(NamedTuple):
    """The library, or None with the reason for which PyTorch computes everything."""

    library: ctypes.CDLL | None
    status: str


@functools.cache
def native() -> Native:
    """Load the library once per process; what was found is logged at INFO."""
    found = _load()
    logger.info("native kernels: %s", found.status)
    return found


def _load() -> Native:
    if os.environ.get(SWITCH_VARIABLE) == "0":
        return Native(None, f"switched off by {SWITCH_VARIABLE}=0; PyTorch computes everything")
    if not LIBRARY_FILE.is_file():
        return Native(None, f"not built, PyTorch computes everything; {REINSTALL}")
    try:
        library = ctypes.CDLL(str(LIBRARY_FILE))
        version = library.interface_version()
    except (OSError, AttributeError) as error:
        return Native(None, f"not usable ({error}), PyTorch computes everything; {REINSTALL}")
    if version != INTERFACE_VERSION:
        return Native(None, f"built from other sources, PyTorch computes everything; {REINSTALL}")
    library.instruction_set_name.restype = ctypes.c_char_p
    library.limit_instruction_set.argtypes, library.limit_instruction_set.restype = [ctypes.c_int64], None
    for name in (
        *("convolution_slack", "convolution_is_fast", "product_is_fast", "softmax_is_fast"),
        *("matrix_scratch", "matrix_is_fast", "attention_width_multiple", "attention_is_fast"),
    ):
        getattr(library, name).argtypes, getattr(library, name).restype = [], ctypes.c_int64
    for name in ("snake_strips", "softmax_pieces"):
        getattr(library, name).argtypes, getattr(library, name).restype = [ctypes.c_int64], ctypes.c_int64
    return Native(library, f"in use, {library.instruction_set_name().decode()}")


def loaded() -> ctypes.CDLL:
    """The library, for callers that know from `usable` that there is one."""
    library = native().library
    assert library is not None
    return library


def usable(*tensors: Tensor) -> bool:
    """Whether the kernels can compute on these: plain float32 tensors in memory, nothing being traced or compiled."""
    for t in tensors:
        if t.dtype != torch.float32 or not t.is_cpu or type(t) not in PLAIN_TYPES:
            return False
    return native().library is not None and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def run(kernel: Callable[[object], object], task: ctypes.Structure, threads: int) -> None:
    """Call `kernel` with `task` on `threads` threads and wait for all of them.

    The threads are those of the OpenMP runtime that torch has loaded (its own ones, which may be spinning after the
    operation before): threads of another pool would have to share the cores with them.
    """
    if threads <= 1:
        kernel(ctypes.byref(task))
    elif (start := _openmp()) is not None:
        start(kernel, ctypes.byref(task), threads, 0)
    else:
        others = [_pool().submit(kernel, ctypes.byref(task)) for _ in range(threads - 1)]
        kernel(ctypes.byref(task))
        for other in others:
            other.result()


@functools.cache
def _openmp() -> Callable[..., object] | None:
    """`GOMP_parallel(function, argument, threads, flags)` of the runtime in use, where it offers that interface."""
    if sys.platform == "win32":
        return None
    try:
        start = ctypes.CDLL(None).GOMP_parallel
    except AttributeError:
        return None
    start.restype = None
    start.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    return start


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="indextts2-native")


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork, only the record of them would.
    os.register_at_fork(after_in_child=_pool.cache_clear)
