"""Make a voice file from reference audio once, or show what is in one."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from indextts2.cli import options
from indextts2.cli.console import say, table


def add_options(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    make = actions.add_parser("make", help="compute a voice from audio and save it")
    make.add_argument("audio", metavar="AUDIO", help="reference audio, 1 to 15 s")
    make.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.safetensors")
    make.add_argument("--name", default="", help="a name that is stored in the file")
    options.add_model_options(make)
    show = actions.add_parser("show", help="print what a voice file holds")
    show.add_argument("file", type=Path, metavar="FILE.safetensors")
    show.add_argument("--json", action="store_true", help="print it as JSON")


def run(args: argparse.Namespace) -> int:
    return _make(args) if args.action == "make" else _show(args)


def _make(args: argparse.Namespace) -> int:
    from indextts2.errors import UsageError
    from indextts2.inference.pipeline import VOICE_SUFFIX

    if args.output.suffix != VOICE_SUFFIX:
        raise UsageError(f"a voice file ends in {VOICE_SUFFIX}; {args.output} does not")
    with options.load_tts(args) as tts:
        path = tts.voice(args.audio, name=args.name or args.output.stem).save(args.output)
    say(f"{path}: {path.stat().st_size / 1e6:.2f} MB")
    return 0


def _show(args: argparse.Namespace) -> int:
    from indextts2.inference.voice import Voice

    voice = Voice.load(args.file)
    facts = {
        "name": voice.name,
        "seconds": round(voice.seconds, 3),
        "source": voice.source,
        "model": voice.model,
        **voice.metadata,
    }
    shapes = {name: list(tensor.shape) for name, tensor in voice.tensors().items()}
    if args.json:
        print(json.dumps({**facts, "tensors": shapes}))
    else:
        print(table([[k, str(v)] for k, v in [*facts.items(), *shapes.items()]], ["voice", str(args.file)]))
    return 0
