"""Recompute golden data with the model's weights and compare, array by array."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from indextts2.cli import options
from indextts2.cli.console import say, table

if TYPE_CHECKING:
    from indextts2.validation.golden import Comparison

COMPONENTS = ("tokenizer", "mel", "speaker", "semantic", "gpt", "s2mel", "vocoder", "full")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--golden-dir", type=Path, required=True, metavar="DIR", help="written by `indextts2 dump`")
    parser.add_argument(
        "--component",
        action="append",
        choices=[*COMPONENTS, "all"],
        help="what to recompute, from the golden inputs of that stage; may be repeated [all]",
    )
    parser.add_argument("--atol", type=options.number, default=1e-4, help="absolute tolerance [%(default)s]")
    parser.add_argument("--rtol", type=options.number, default=1e-3, help="relative tolerance [%(default)s]")
    parser.add_argument("--json", action="store_true", help="print the comparisons as JSON")
    options.add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    from indextts2.errors import ValidationError
    from indextts2.validation.golden import GoldenSet, verdict
    from indextts2.validation.replay import validate

    golden = GoldenSet.read(args.golden_dir)
    asked = args.component or ["all"]
    components = list(COMPONENTS) if "all" in asked else list(dict.fromkeys(asked))
    with options.load_tts(args) as tts:
        comparisons = validate(tts, golden, components, args.atol, args.rtol)
    passed, reasons = verdict(components, comparisons)
    if args.json:
        print(json.dumps({"passed": passed, "reasons": reasons, "comparisons": [asdict(c) for c in comparisons]}))
    else:
        print(report(comparisons, args.verbose))
    for reason in reasons:
        say(f"FAILED {reason}")
    say(f"{sum(c.passed for c in comparisons)} of {len(comparisons)} arrays agree: {'passed' if passed else 'failed'}")
    return 0 if passed else ValidationError.exit_code


def report(comparisons: list[Comparison], verbose: bool) -> str:
    """The table of `validate`; without `verbose` passed arrays show no mean difference."""
    rows = [
        [
            f"{c.component}: {c.name}",
            "x".join(map(str, c.shape)),
            f"{c.max_difference:.2e}",
            *([f"{c.mean_difference:.2e}"] if verbose else []),
            "ok" if c.passed else "FAILED",
        ]
        for c in comparisons
    ]
    return table(rows, ["array", "shape", "max difference", *(["mean difference"] if verbose else []), "verdict"])
