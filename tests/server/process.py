"""`python -m tests.server.process ARGUMENTS`: the command `serve` with an engine that needs no model.

SECONDS_PER_WORD in the environment says how slowly it speaks.
"""

from __future__ import annotations

import os
import sys

from indextts2.cli import main as command_line
from indextts2.inference import engine
from indextts2.server import warm_up
from tests.server.fakes import FakeEngine, Script


def make_engine(tts: object, max_running: int, lanes: int | None) -> FakeEngine:
    return Script(seconds_per_word=float(os.environ.get("SECONDS_PER_WORD", "0"))).make_engine()


if __name__ == "__main__":
    from indextts2.cli import options

    options.load_tts = lambda args: None
    warm_up.warm_up = lambda *_: None
    engine.SpeechEngine = make_engine
    sys.exit(command_line.main(["serve", *sys.argv[1:]]))
