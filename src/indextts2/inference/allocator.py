"""Freed memory is kept for the next tensor instead of being handed back to the system.

Activations of some megabytes are made and freed thousands of times. glibc hands much of it back to the system each
time, which then has to bring in and zero the pages of the next one.
"""

from __future__ import annotations

import ctypes
import functools
import logging
import os
import platform

logger = logging.getLogger(__name__)

# Set to 0: the allocator stays as it is. So it does where one of glibc's own variables sets a threshold.
SWITCH_VARIABLE = "INDEXTTS2_KEEP_MEMORY"
GLIBC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")
# Parameters of mallopt, from malloc.h. Blocks up to the first come from the heap (more than 32 MiB it refuses), and up
# to the second may lie free at its end.
M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES = -3, 32 << 20
M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES = -1, 256 << 20


@functools.cache
def keep_freed_memory() -> bool:
    """Set glibc's thresholds for this process, once. Returns whether they were set."""
    asked_not_to = os.environ.get(SWITCH_VARIABLE) == "0" or any(name in os.environ for name in GLIBC_VARIABLES)
    if asked_not_to or platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        return False
    done = mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD_BYTES) == 1 and mallopt(M_TRIM_THRESHOLD, TRIM_THRESHOLD_BYTES) == 1
    logger.debug("freed memory is %s", "kept" if done else "handed back: mallopt refused")
    return done
