"""Every stage against its floor, and against the same stage as one would write it first.

    python -m benchmarks.stages [--size embedded|full|small] [--stage NAME...] [--repeats 5] [--threads N] [--json FILE]

The floor is the least time in which this machine could do the stage's arithmetic and read its weights, at the rates
that it sustains in a large matrix product and a large read, measured first. Ours and the plain version take turns;
times are medians, the ratio is the median of the ratios of neighbours. Weights are random (see sizes.py) and made for
one network at a time. The last line of the output is all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.machine import describe
from benchmarks.roofline import Machine
from benchmarks.sizes import SIZES
from benchmarks.stage_list import STAGES, Bench, Stage
from indextts2.cli.console import say, table

GIGA = 1e9
COLUMNS = ["stage", "per", "ms", "GFLOP", "GB", "floor, ms", "x floor", "plain, ms", "plain / ours"]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure the stages asked for, print the table and the JSON, and return the figures."""
    args = _parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    machine = roofline.measure()
    bench = Bench(args.size, calls=args.repeats + 1)
    figures = {
        "benchmark": "stages",
        **describe(torch.device("cpu"), torch.float32),
        "size": args.size,
        "repeats": args.repeats,
        "gflop_per_second": round(machine.flop_per_second / GIGA, 1),
        "gb_per_second": round(machine.bytes_per_second / GIGA, 1),
        "stages": [measure_stage(name, bench, machine, args.repeats, args.ours_only) for name in args.stage],
    }
    say(f"{figures['gflop_per_second']} GFLOP/s, {figures['gb_per_second']} GB/s, {figures['threads']} threads")
    say(table([_row(stage) for stage in figures["stages"]], COLUMNS))
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


@torch.inference_mode()
def measure_stage(name: str, bench: Bench, machine: Machine, repeats: int, ours_only: bool = False) -> dict[str, Any]:
    """Build and time one stage; all figures are per unit of its work."""
    stage = STAGES[name](bench)
    calls = [stage.ours] if ours_only or stage.plain is None else [stage.ours, stage.plain]
    return summarise(name, stage, alternate(calls, repeats), machine)


def alternate(calls: Sequence[Callable[[], object]], repeats: int) -> list[list[float]]:
    """Seconds of each call, taking turns, after one call of each that does not count."""
    seconds: list[list[float]] = [[] for _ in calls]
    for turn in range(repeats + 1):
        for call, taken in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if turn:
                taken.append(time.perf_counter() - start)
    return seconds


def summarise(name: str, stage: Stage, seconds: list[list[float]], machine: Machine) -> dict[str, Any]:
    """Time, work and floor per unit; with a plain version also its time and the ratio."""
    floor = stage.cost.floor_seconds(machine.flop_per_second, machine.bytes_per_second)
    median = statistics.median(seconds[0])
    result = {
        "stage": name,
        "unit": stage.unit,
        "seconds": median / stage.amount,
        "gflop": stage.cost.flop / GIGA / stage.amount,
        "gb": stage.cost.bytes / GIGA / stage.amount,
        "floor_seconds": floor / stage.amount,
        "over_floor": median / floor,
    }
    if len(seconds) > 1:
        result["plain_seconds"] = statistics.median(seconds[1]) / stage.amount
        result["plain_over_ours"] = statistics.median(p / o for o, p in zip(*seconds, strict=True))
    return {key: value if isinstance(value, str) else float(f"{value:.4g}") for key, value in result.items()}


def _row(stage: dict[str, Any]) -> list[str]:
    plain, ratio = stage.get("plain_seconds"), stage.get("plain_over_ours")
    return [
        stage["stage"],
        stage["unit"],
        f"{1000 * stage['seconds']:.2f}",
        f"{stage['gflop']:.4g}",
        f"{stage['gb']:.3g}",
        f"{1000 * stage['floor_seconds']:.2f}",
        f"{stage['over_floor']:.2f}",
        "-" if plain is None else f"{1000 * plain:.2f}",
        "-" if ratio is None else f"{ratio:.2f}",
    ]


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="embedded", help="[%(default)s]")
    parser.add_argument("--stage", nargs="+", choices=STAGES, default=list(STAGES), metavar="NAME",
                        help=f"one or more of {', '.join(STAGES)} [all]")  # fmt: skip
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each stage [%(default)s]")
    parser.add_argument("--threads", type=int, help="[as torch chooses]")
    parser.add_argument("--ours-only", action="store_true", help="without the plain versions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    args = parser.parse_args(argv)
    if not 1 <= args.repeats <= 30:
        parser.error(f"--repeats must lie in 1..30, not {args.repeats}")
    return args


if __name__ == "__main__":
    main()
