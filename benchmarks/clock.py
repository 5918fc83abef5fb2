"""By which clock something is timed."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


def seconds(function: Callable[[], object], clock: Clock) -> float:
    """How long a call takes."""
    start = clock()
    function()
    return clock() - start


def add_clock(parser: argparse.ArgumentParser) -> None:
    """Options: threads and clock."""
    parser.add_argument("--threads", type=int, help="[as torch chooses]")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="[%(default)s]")


def check_clock(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Processor time means something for one thread only."""
    if args.clock == "cpu" and args.threads != 1:
        parser.error("--clock cpu adds up the time of all threads; use it with --threads 1")
