"""Write a model directory as one set of safetensors files with a manifest."""

from __future__ import annotations

import argparse
from pathlib import Path

from indextts2.cli.console import StepBar, say


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="model directory in the official layout")
    parser.add_argument("output", type=Path, metavar="OUT", help="new directory; it must not exist")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="how weights are stored [%(default)s]",
    )
    parser.add_argument("--keep-unused", action="store_true", help="also write tensors that inference does not use")
    parser.add_argument("--keep-text-head", action="store_true", help="also write the text head, for fine-tuning")


def run(args: argparse.Namespace) -> int:
    import torch

    from indextts2.checkpoints.convert import ConvertProgress, convert

    with StepBar() as bar:

        def report(progress: ConvertProgress) -> None:
            bar(progress.what, progress.done, progress.total)

        out = convert(
            args.directory,
            args.output,
            getattr(torch, args.dtype),
            keep_unused=args.keep_unused,
            keep_text_head=args.keep_text_head,
            on_progress=report,
        )
    size = sum(file.stat().st_size for file in out.rglob("*") if file.is_file())
    say(f"{out}: {size / 1e6:,.0f} MB")
    return 0
