"""Fetching the official weights into the official layout: resumable, verified, recorded.

Every file goes through a ``.part`` file under ``.download``, is checked (size, SHA-256 of pin, lock or server) and only
then moved to its place. An interrupted download continues where it stopped, also in a later process.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from indextts2.checkpoints.converted import file_sha256
from indextts2.checkpoints.layout import MAIN_REPOSITORY, ModelFile, model_cache, official_files
from indextts2.checkpoints.pins import PINS, LockEntry, Pin, read_lock, write_lock
from indextts2.checkpoints.sources import HuggingFace, ModelScope, Remote, Source
from indextts2.errors import DownloadError, UsageError

logger = logging.getLogger(__name__)

MODELS = {"indextts-2": MAIN_REPOSITORY}
STAGING = ".download"
EMOTION_TEXT_FOLDER = "qwen0.6bemo4-merge"
LICENCE_NOTICE = """\
The weights of IndexTTS-2 are not part of this software and are not under its licence. They are published by bilibili
(Index team) under a licence of their own, which restricts their use, commercial use among others. The other four
models that are fetched with them (w2v-BERT 2.0, MaskGCT's codec, CAMPPlus, BigVGAN) have licences of their own too.
Read them on the pages of the repositories before you go on. Clone only voices whose owners consent.
"""


@dataclass(frozen=True)
class DownloadProgress:
    """`done` of `total` bytes (None: not known) of file `index` (from 1) of `files`."""

    path: str
    done: int
    total: int | None
    index: int
    files: int


OnProgress = Callable[[DownloadProgress], None]


def download(
    model: str = "indextts-2",
    target: str | Path | None = None,
    *,
    accept_license: bool = False,
    source: Literal["huggingface", "modelscope"] = "huggingface",
    revisions: Mapping[str, str] | None = None,
    endpoint: str | None = None,
    emotion_text: bool = False,
    on_progress: OnProgress | None = None,
    pins: Mapping[tuple[str, str], Pin] | None = None,
) -> Path:
    """Download a model; files that are there and correct are left alone. Returns the model directory.

    Args:
        model: a name of `MODELS`.
        target: model directory; None puts it into the user's model cache.
        accept_license: must be True, after `LICENCE_NOTICE` was shown.
        source: where from. `modelscope` needs the extra of that name.
        revisions: branch, tag or commit by repository. None: as locked, else the newest.
        endpoint: address of a mirror; None takes HF_ENDPOINT or the public hub.
        emotion_text: also fetch the model that reads emotion from words (1.2 GB).
        on_progress: called while bytes arrive; an exception it raises ends the download, which can be resumed.
        pins: expected hashes; None takes the table of this package.

    Raises:
        UsageError: the model is unknown or the licence was not accepted.
        DownloadError: a file is not there, the server cannot be reached, or a file is not what it must be.
        MissingExtraError: `modelscope` is not installed.
    """
    if model not in MODELS:
        raise UsageError(f"no model {model!r} to download; known: {', '.join(MODELS)}")
    if not accept_license:
        raise UsageError("the licence of the weights was not accepted; pass accept_license=True.\n" + LICENCE_NOTICE)
    directory = Path(target) if target is not None else model_cache() / model
    remote: Source = HuggingFace(endpoint) if source == "huggingface" else ModelScope(endpoint)
    job = _Job(directory, remote, PINS if pins is None else pins, revisions or {}, on_progress)
    job.run(emotion_text)
    return directory


@dataclass
class _Job:
    """One download of one model directory."""

    directory: Path
    source: Source
    pins: Mapping[tuple[str, str], Pin]
    revisions: Mapping[str, str]
    on_progress: OnProgress | None

    def run(self, emotion_text: bool) -> None:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            files = list(official_files())
            if emotion_text:
                files += self._emotion_text_files()
            for index, entry in enumerate(files, start=1):
                self._ensure(entry, index, len(files))
            shutil.rmtree(self.directory / STAGING, ignore_errors=True)
        except OSError as error:
            raise DownloadError(f"cannot write to {self.directory}: {error}") from error

    def _emotion_text_files(self) -> list[ModelFile]:
        names = self.source.list_files(MAIN_REPOSITORY, self.revisions.get(MAIN_REPOSITORY))
        found = [name for name in names if name.startswith(EMOTION_TEXT_FOLDER + "/") and ".." not in name]
        if not found:
            raise DownloadError(f"{MAIN_REPOSITORY} holds no folder {EMOTION_TEXT_FOLDER}")
        return [ModelFile("emotion_text", name, MAIN_REPOSITORY, name) for name in found]

    def _ensure(self, entry: ModelFile, index: int, files: int) -> None:
        """Make sure that a file is in its place, correct and recorded."""
        lock = read_lock(self.directory)
        path = self.directory / entry.path
        pin = self._expected(entry, lock.get(entry.path))
        if path.is_file():
            digest = file_sha256(path)
            if pin is not None and digest != pin.sha256:
                raise DownloadError(_mismatch(path, digest, pin.sha256) + "; remove it to download it again")
            if entry.path not in lock:
                known = LockEntry(entry.repository, entry.repository_path, None, digest, path.stat().st_size)
                write_lock(self.directory, {**lock, entry.path: known})
            return

        def report(done: int, total: int | None) -> None:
            if self.on_progress is not None:
                self.on_progress(DownloadProgress(entry.path, done, total, index, files))

        fetched, part = self._fetch(entry, pin, report)
        digest = _verify(part, pin, fetched)
        path.parent.mkdir(parents=True, exist_ok=True)
        part.replace(path)
        record = LockEntry(entry.repository, entry.repository_path, fetched.revision, digest, path.stat().st_size)
        write_lock(self.directory, {**lock, entry.path: record})

    def _expected(self, entry: ModelFile, locked: LockEntry | None) -> Pin | None:
        """The pin, else the record of an earlier download unless another revision is asked for by name."""
        pin = self.pins.get((entry.repository, entry.repository_path))
        if pin is not None or locked is None:
            return pin
        if self.revisions.get(entry.repository) not in (None, locked.revision):
            return None
        return Pin(locked.sha256, locked.size, locked.revision)

    def _fetch(
        self, entry: ModelFile, pin: Pin | None, report: Callable[[int, int | None], None]
    ) -> tuple[Remote, Path]:
        revision = self.revisions.get(entry.repository) or (pin.revision if pin is not None else None)
        staging = self.directory / STAGING / entry.path
        staging.parent.mkdir(parents=True, exist_ok=True)
        logger.info("downloading %s from %s", entry.repository_path, entry.repository)
        return self.source.fetch(entry.repository, entry.repository_path, revision, staging, report)


def _verify(part: Path, pin: Pin | None, remote: Remote) -> str:
    """Compare a fetched file with what it must be; returns its SHA-256, removes it when it is wrong.

    Raises:
        DownloadError: the hash or the size differs.
    """
    digest, size = file_sha256(part), part.stat().st_size
    expected = [value for value in (pin.sha256 if pin else None, remote.sha256) if value is not None]
    sizes = [value for value in (pin.size if pin else None, remote.size) if value is not None]
    for wanted in expected:
        if digest != wanted:
            part.unlink()
            raise DownloadError(_mismatch(part, digest, wanted) + "; the file was removed")
    for wanted_size in sizes:
        if size != wanted_size:
            part.unlink()
            raise DownloadError(f"{part} has {size} bytes; expected {wanted_size}; the file was removed")
    return digest


def _mismatch(path: Path, digest: str, wanted: str) -> str:
    return f"{path} has SHA-256 {digest}; expected {wanted}"
