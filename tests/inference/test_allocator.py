"""Large tensors come from the heap, whose pages stay with the process; and the user may say no."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

# hblks, the fourth field of glibc's mallinfo2, counts the blocks that were mapped one by one.
PROGRAM = """
import ctypes, torch
from indextts2.inference.allocator import keep_freed_memory
class Information(ctypes.Structure):
    _fields_ = [(str(i), ctypes.c_size_t) for i in range(10)]
information = ctypes.CDLL(None).mallinfo2
information.restype = Information
kept = keep_freed_memory()
before = getattr(information(), "3")
tensor = torch.ones(5 << 20)
print(kept, getattr(information(), "3") - before)
"""

pytestmark = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33 or newer"
)


def run(**environment: str) -> str:
    """Whether thresholds were set, and in how many mapped blocks a tensor of 20 MiB then lies."""
    variables = {"OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, env=variables
    ).stdout.strip()


def test_large_tensors_come_from_the_heap() -> None:
    assert run() == "True 0"


@pytest.mark.parametrize("variable", [{"INDEXTTS2_KEEP_MEMORY": "0"}, {"MALLOC_TRIM_THRESHOLD_": "131072"}])
def test_the_user_may_say_no(variable: dict[str, str]) -> None:
    assert run(**variable) == "False 1"
