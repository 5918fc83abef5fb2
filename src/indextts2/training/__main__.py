"""``python -m indextts2.training STAGE --work DIR``: prepare the corpus, or train one stage and resume it."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import sys
from pathlib import Path

from indextts2.errors import IndexTTS2Error
from indextts2.training.runner import RunConfig, run_stage

STAGES = ("semantic", "codec", "speaker", "vocoder", "s2mel", "gpt")


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="indextts2.training", description=__doc__)
    parser.add_argument("stage", choices=("prepare", "package", *STAGES))
    parser.add_argument("--work", type=Path, required=True, help="holds data/ and one folder per stage")
    parser.add_argument("--corpus", type=Path, help="folder with manifest.jsonl and the clips (stage prepare)")
    parser.add_argument("--output", help="folder of this run instead of WORK/STAGE; model directory of package")
    for name, kind in (("minutes", float), ("steps", int), ("learning-rate", float), ("threads", int), ("seed", int)):
        parser.add_argument(f"--{name}", type=kind)
    parser.add_argument("--precision", choices=("bfloat16", "float32"))
    parser.add_argument("--device")
    return parser.parse_args(arguments)


def run_config(default: RunConfig, options: argparse.Namespace) -> RunConfig:
    """The stage's default run with the options that were given."""
    names = ("output", "minutes", "steps", "learning_rate", "threads", "seed", "precision", "device")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(default, **given)


def prepare(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from indextts2.training.data import prepare_corpus

    if options.corpus is None:
        raise SystemExit("prepare needs --corpus FOLDER")
    prepare_corpus(options.corpus, options.work / "data", tqdm)


def write_package(options: argparse.Namespace) -> None:
    from indextts2.training.package import package

    if options.output is None:
        raise SystemExit("package needs --output FOLDER")
    package(options.work, Path(options.output))


def main(arguments: list[str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    options = parse(arguments)
    try:
        if options.stage == "prepare":
            prepare(options)
            return 0
        if options.stage == "package":
            write_package(options)
            return 0
        module = importlib.import_module(f"indextts2.training.{options.stage}")
        stage, default = module.make(options.work)
        figures = run_stage(stage, run_config(default, options))
        sys.stdout.write(json.dumps(figures) + "\n")
    except IndexTTS2Error as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
