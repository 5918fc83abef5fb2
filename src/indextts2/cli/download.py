"""Fetch the official weights (about 6 GB) into a model directory. They have a licence of their own, shown first."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from indextts2.cli.console import Bar, say
from indextts2.errors import UsageError

if TYPE_CHECKING:
    from indextts2.checkpoints.download import DownloadProgress


def add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", nargs="?", default="indextts-2", help="which model [%(default)s]")
    add("-o", "--output", type=Path, metavar="DIR", help="model directory [the user's model cache, found by name]")
    add("--source", choices=["huggingface", "modelscope"], default="huggingface", help="where from [%(default)s]")
    add("--revision", action="append", default=[], metavar="REPO=REV", help="another revision of a repository")
    add("--endpoint", metavar="URL", help="a mirror [HF_ENDPOINT, or the public hub]")
    add("--emotion-text", action="store_true", help="also the model that reads emotion from words (1.2 GB)")
    add("--accept-license", action="store_true", help="I have read and accept the licences of the weights")


def run(args: argparse.Namespace) -> int:
    from indextts2.checkpoints.download import LICENCE_NOTICE, download

    say(LICENCE_NOTICE)
    accepted = args.accept_license or _ask()
    with ByteBar() as bar:
        directory = download(
            args.model,
            args.output,
            accept_license=accepted,
            source=args.source,
            revisions=_revisions(args.revision),
            endpoint=args.endpoint,
            emotion_text=args.emotion_text,
            on_progress=bar,
        )
    say(f"{directory}: complete; use it with --model {args.model if args.output is None else directory}")
    return 0


def _ask() -> bool:
    if not sys.stdin.isatty():
        raise UsageError("the licence must be accepted: add --accept-license")
    say("Do you accept these licences? [y/N]")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise UsageError("the licence was not accepted; nothing was downloaded")
    return True


def _revisions(options: list[str]) -> dict[str, str]:
    pairs = [option.partition("=") for option in options]
    for repository, equals, revision in pairs:
        if not (repository and equals and revision):
            raise UsageError(f"--revision takes REPOSITORY=REVISION, not {repository + equals + revision!r}")
    return {repository: revision for repository, _, revision in pairs}


class ByteBar(Bar):
    """One bar per file, in bytes."""

    _path = ""

    def __call__(self, progress: DownloadProgress) -> None:
        """Show the bytes of the file that arrives."""
        if not self.enabled:
            return
        if progress.path != self._path:
            self._path = progress.path
            self._start(progress.total, f"[{progress.index}/{progress.files}] {progress.path}", unit="B")
        self._bar.update(progress.done - self._bar.n)
