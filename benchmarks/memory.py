"""Peak memory of this process, from a point in time on."""

from __future__ import annotations

import sys
from pathlib import Path

MIB = 1 << 20


def reset_peak() -> bool:
    """Begin a new peak. False where the system cannot: a peak then is that of the whole process so far."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_mib() -> float:
    """The most memory that was resident since `reset_peak`."""
    status = Path("/proc/self/status")
    if status.exists():
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) / 1024
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (MIB if sys.platform == "darwin" else 1024)
