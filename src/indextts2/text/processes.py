"""Grammars in processes of their own.

A grammar keeps Python's lock while it reads: 5 ms for each character of a text full of numbers, seconds for a page. A
program that does other things meanwhile, such as a server, lets it read elsewhere and only waits for the answer.

    python -m indextts2.text.processes LANGUAGE CACHE_DIR

reads a JSON string a line from standard input and answers each with a line: `{"text": …}` or `{"error": …}`. The first
line, which nobody asked for, says whether the grammar could be loaded.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import TextIO

from indextts2.errors import TextError
from indextts2.text.engines import load_engine
from indextts2.text.language import Language

END_SECONDS = 2.0
ATTEMPTS = 2


class ProcessEngine:
    """The grammar of a language in a process, which ends with this object and is started again when it dies."""

    def __init__(self, language: Language, cache_dir: Path) -> None:
        """Raises TextError if the grammar cannot be loaded."""
        self._command = [sys.executable, "-m", __name__, language, str(cache_dir)]
        self._lock = threading.Lock()
        self._start()

    def normalize(self, text: str) -> str:
        """Let the process read `text`; raises TextError if the grammar has no reading for it."""
        with self._lock:
            for _ in range(ATTEMPTS):
                try:
                    return self._ask(text)
                except (OSError, EOFError):
                    self._end()
                    self._start()
        raise TextError(f"the process that reads numbers ended twice on a text of {len(text)} characters")

    @property
    def process_id(self) -> int:
        """The process that reads now."""
        return self._process.pid

    def _ask(self, text: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(text) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith("\n"):
            raise EOFError
        answer = json.loads(line)
        if "error" in answer:
            raise TextError(answer["error"])
        return str(answer["text"])

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )
        self._end = weakref.finalize(self, _end, self._process)
        try:
            self._answer()
        except (OSError, EOFError):
            self._end()
            raise TextError("the process that reads numbers ended before it was ready; see its error output") from None
        except TextError:
            self._end()
            raise


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait(END_SECONDS)
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        try:
            pipe.close()
        except OSError:  # what it was not told
            continue


def main() -> int:
    """Load the grammar and answer until standard input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the program that asks says when it is over
    language: Language = "zh" if sys.argv[1] == "zh" else "en"
    # Whatever libraries print must not get between the answers.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        try:
            engine = load_engine(language, Path(sys.argv[2]))
        except TextError as error:
            _say(answers, {"error": str(error)})
            return 1
        _say(answers, {"text": ""})
        for line in sys.stdin:
            try:
                _say(answers, {"text": engine.normalize(json.loads(line))})
            except TextError as error:
                _say(answers, {"error": str(error)})
    return 0


def _say(answers: TextIO, answer: dict[str, str]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    sys.exit(main())
