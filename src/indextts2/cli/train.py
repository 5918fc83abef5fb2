"""Train the embedded voice, stage by stage; every stage can be stopped at any minute and goes on where it was."""

from __future__ import annotations

import argparse
from pathlib import Path

STAGES = ("semantic", "codec", "speaker", "vocoder", "s2mel", "gpt")


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("stage", choices=("prepare", *STAGES), help="prepare the corpus, or train a stage")
    add("--work", type=Path, required=True, metavar="DIR", help="holds data/ and one folder per stage")
    add("--corpus", type=Path, metavar="DIR", help="folder with manifest.jsonl and the clips (prepare)")
    add("--output", metavar="NAME", help="folder of this run instead of WORK/STAGE")
    add("--minutes", type=float, help="stop after so many minutes, with a checkpoint")
    add("--steps", type=int, help="length of the run")
    add("--learning-rate", type=float, help="highest learning rate")
    add("--threads", type=int, help="threads of torch")
    add("--seed", type=int, help="seed of the run")
    add("--precision", choices=("bfloat16", "float32"), help="of the forward and backward pass")
    add("--device", help="cpu, cuda")


def run(args: argparse.Namespace) -> int:
    from indextts2.training.__main__ import run as run_training

    return run_training(args)
