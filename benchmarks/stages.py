"""Every stage against its floor, and against the same stage as one would write it first.

    python -m benchmarks.stages [--size embedded|full|small] [--stage NAME...] [--repeats 5] [--threads N] [--json FILE]

The floor is the least time in which this machine could do the stage's arithmetic and read its weights, at the rates
that it sustains in a large matrix product and a large read, measured just before. Ours and the plain version take
turns; of each the best time counts, as whatever else the machine does only adds to it. `--clock cpu` counts processor
time of one thread, for a machine that is busy with other things. Weights are random (see sizes.py) and made for one
network at a time. The last line of the output is all figures as JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import roofline
from benchmarks.clock import CLOCKS, Clock, add_clock, check_clock, seconds
from benchmarks.machine import describe
from benchmarks.roofline import Machine
from benchmarks.sizes import SIZES
from benchmarks.stage_list import STAGES, Bench, Stage
from indextts2.cli.console import say, table
from indextts2.native.library import native

GIGA = 1e9
COLUMNS = ["stage", "per", "ms", "GFLOP", "GB", "floor, ms", "x floor", "plain, ms", "plain / ours"]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure the stages asked for, print the table and the JSON, and return the figures."""
    args = _parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    bench = Bench(args.size, args.repeats + 1, args.decode_steps)
    clock = CLOCKS[args.clock]
    figures = {
        "benchmark": "stages",
        **describe(torch.device("cpu"), torch.float32),
        "native": native().status,
        "clock": args.clock,
        "size": args.size,
        "repeats": args.repeats,
        "decode_steps": args.decode_steps,
        "stages": [measure_stage(name, bench, args.repeats, clock, args.ours_only) for name in args.stage],
    }
    rates = [max(stage[rate] for stage in figures["stages"]) for rate in ("gflop_per_second", "gb_per_second")]
    say(f"up to {rates[0]:.1f} GFLOP/s and {rates[1]:.1f} GB/s, {figures['threads']} threads, {args.clock} clock")
    say(table([_row(stage) for stage in figures["stages"]], COLUMNS))
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


@torch.inference_mode()
def measure_stage(
    name: str, bench: Bench, repeats: int, clock: Clock = time.perf_counter, ours_only: bool = False
) -> dict[str, Any]:
    """Build and time one stage, and the machine's rates; all figures are per unit of its work."""
    stage = STAGES[name](bench)
    machine = roofline.measure(repeats, clock)
    calls = [stage.ours] if ours_only else [stage.ours, stage.plain]
    return summarise(name, stage, alternate(calls, repeats, clock), machine)


def alternate(calls: Sequence[Callable[[], object]], repeats: int, clock: Clock) -> list[float]:
    """The best seconds of each call; they take turns, after one call of each that does not count."""
    for call in calls:
        call()
    turns = [[seconds(call, clock) for call in calls] for _ in range(repeats)]
    return [min(taken) for taken in zip(*turns, strict=True)]


def summarise(name: str, stage: Stage, taken: list[float], machine: Machine) -> dict[str, Any]:
    """Time, work and floor per unit; with a plain version also its time and the ratio."""
    floor = stage.cost.floor_seconds(machine.flop_per_second, machine.bytes_per_second)
    result = {
        "stage": name,
        "unit": stage.unit,
        "gflop_per_second": machine.flop_per_second / GIGA,
        "gb_per_second": machine.bytes_per_second / GIGA,
        "seconds": taken[0] / stage.amount,
        "gflop": stage.cost.flop / GIGA / stage.amount,
        "gb": stage.cost.bytes / GIGA / stage.amount,
        "floor_seconds": floor / stage.amount,
        "over_floor": taken[0] / floor,
    }
    if len(taken) > 1:
        result |= {"plain_seconds": taken[1] / stage.amount, "plain_over_ours": taken[1] / taken[0]}
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
    parser.add_argument("--decode-steps", type=int, default=16, help="in a call of a decoding stage [%(default)s]")
    add_clock(parser)
    parser.add_argument("--ours-only", action="store_true", help="without the plain versions")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    args = parser.parse_args(argv)
    if not 1 <= args.repeats <= 30:
        parser.error(f"--repeats must lie in 1..30, not {args.repeats}")
    check_clock(parser, args)
    return args


if __name__ == "__main__":
    main()
