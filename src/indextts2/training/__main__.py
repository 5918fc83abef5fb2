"""``python -m indextts2.training STAGE --work DIR``: the same as ``indextts2 train``."""

from __future__ import annotations

import argparse
import logging
import sys

from indextts2.errors import IndexTTS2Error
from indextts2.training import command


def main(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    parser = argparse.ArgumentParser(prog="indextts2.training", description=command.__doc__)
    command.add_options(parser)
    try:
        return command.run(parser.parse_args(arguments))
    except IndexTTS2Error as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
