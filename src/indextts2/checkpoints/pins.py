"""What is known about the published files: SHA-256 and size by repository and file, and the lock of a download.

A file without a pin is recorded in ``download.lock.json`` when it is first downloaded (revision, hash, size) and
verified against that record ever after. Only hashes of files that were seen are in the table.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from indextts2.checkpoints.layout import MAIN_REPOSITORY
from indextts2.errors import DownloadError

LOCK_FILE = "download.lock.json"
LOCK_VERSION = 1


@dataclass(frozen=True)
class Pin:
    """What a file must be. `revision` is the commit of its repository, None where any will do."""

    sha256: str
    size: int
    revision: str | None = None


PINS: Mapping[tuple[str, str], Pin] = {
    (MAIN_REPOSITORY, "bpe.model"): Pin("b2a5ce8090d32da3642cc4f81fdc996376bc6dd3f4cd5e3d165f71120d9f2bc8", 475_997),
    (MAIN_REPOSITORY, "feat1.pt"): Pin("f219cb447d80216ba615666da2ff8d63ac544eee26657f3a7b278692bf7a67c4", 57_170),
    (MAIN_REPOSITORY, "feat2.pt"): Pin("9c4292e96dee535aea9a6206e9a0c856dd578dde9212acdb16dd3ada4d12bf80", 374_866),
    (MAIN_REPOSITORY, "wav2vec2bert_stats.pt"): Pin(
        "c9c176c2b8850ab2e3ba828bbfa969deaf4566ce55db5f2687b8430b87526ad2", 9_343
    ),
}


@dataclass(frozen=True)
class LockEntry:
    """A file as it was first downloaded."""

    repository: str
    file: str
    revision: str | None
    sha256: str
    size: int


def read_lock(directory: Path) -> dict[str, LockEntry]:
    """The lock of a model directory by path; empty when there is none.

    Raises:
        DownloadError: the lock is malformed.
    """
    path = directory / LOCK_FILE
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != LOCK_VERSION:
            raise DownloadError(f"{path} has version {values['version']!r}; this program knows {LOCK_VERSION}")
        return {str(name): LockEntry(**entry) for name, entry in values["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DownloadError(f"{path} is malformed: {type(error).__name__} {error}; remove it to start over") from error


def write_lock(directory: Path, entries: Mapping[str, LockEntry]) -> None:
    """Write the lock atomically."""
    path = directory / LOCK_FILE
    values = {"version": LOCK_VERSION, "files": {name: asdict(entry) for name, entry in sorted(entries.items())}}
    temporary = path.with_suffix(".part")
    temporary.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
