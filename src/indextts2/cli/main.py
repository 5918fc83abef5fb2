"""Entry point: `indextts2 COMMAND …`.

Exit codes: 0 success, 1 unexpected failure, 2 usage, 3 text, 4 audio, 5 configuration, 6 checkpoint, 7 missing extra,
8 generation, 9 validation, 10 download, 130 cancelled.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from importlib import import_module

from indextts2 import __version__
from indextts2.cli.console import say
from indextts2.errors import IndexTTS2Error

COMMANDS = {
    "infer": "speak a text in the voice of a reference",
    "serve": "serve speech over HTTP, for OpenAI's clients and a web page",
    "info": "dimensions and parameter counts of a model",
    "voice": "make and show voice files",
    "check": "what a model directory holds and what it lacks",
    "convert": "write a model as one safetensors set",
    "download": "fetch the official weights",
    "dump": "write golden data of a real run",
    "validate": "recompute golden data and compare",
    "train": "train a small voice stage by stage, or fine-tune a model",
}


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands. Command modules import nothing heavy at their top."""
    parser = argparse.ArgumentParser(
        prog="indextts2",
        description="Zero-shot voice cloning with emotion (IndexTTS2).",
        epilog="`indextts2 COMMAND --help` shows the options of a command.",
    )
    parser.add_argument("--version", action="version", version=f"indextts2 {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        module = import_module(f"indextts2.cli.{name}")
        sub = commands.add_parser(name, help=summary, description=module.__doc__)
        sub.add_argument("-v", "--verbose", action="store_true", help="more messages; traceback on failure")
        module.add_options(sub)
        sub.set_defaults(run=module.run)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; a user's mistake is one line on stderr."""
    args = make_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.DEBUG if args.verbose else logging.WARNING, stream=sys.stderr, format="indextts2: %(message)s"
    )
    try:
        return int(args.run(args))
    except IndexTTS2Error as error:
        if args.verbose:
            raise
        say(f"indextts2 {args.command}: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        say(f"indextts2 {args.command}: stopped")
        return 130
    except BrokenPipeError:
        # The reader of our output went away (`… | head`): no message, and none from the interpreter's own flush.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
