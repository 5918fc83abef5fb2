"""The converted layout: safetensors with keys ``<module>.<parameter>``, a complete ``config.yaml`` and a manifest.

``manifest.json`` lists every file with its size, SHA-256 and number of tensors, the modules, and where they came from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from indextts2.checkpoints.layout import MANIFEST_FILE, ModelDirectory, inside
from indextts2.checkpoints.official import MATRICES, MODULES, STATISTICS, Stored
from indextts2.checkpoints.tensor_files import read_safetensors
from indextts2.errors import CheckpointError

FORMAT = "indextts2"
FORMAT_VERSION = 1
CONSTANTS = "constants"


@dataclass(frozen=True)
class FileRecord:
    """One file of a converted model; `tensors` is None for files that hold none."""

    size: int
    sha256: str
    tensors: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says. `source` tells in plain words and numbers where the weights came from."""

    fingerprint: str
    modules: tuple[str, ...]
    files: Mapping[str, FileRecord]
    source: Mapping[str, Any] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(directory: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        CheckpointError: it is missing, malformed, or of a format that this version does not know.
    """
    path = inside(directory, MANIFEST_FILE)
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CheckpointError(f"{path} is not the manifest of an indextts2 model")
    if values.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {values.get('format_version')!r}; this program reads {FORMAT_VERSION}; "
            "convert the model again or update the program"
        )
    try:
        files = {str(name): FileRecord(**record) for name, record in values["files"].items()}
        manifest = Manifest(str(values["fingerprint"]), tuple(values["modules"]), files, dict(values["source"]))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path} is malformed: {type(error).__name__} {error}") from error
    if unknown := [name for name in manifest.modules if name not in MODULES]:
        raise CheckpointError(f"{path} names unknown modules {unknown}; known: {', '.join(MODULES)}")
    return manifest


class ConvertedReader:
    """Reads a converted model directory."""

    def __init__(self, directory: ModelDirectory) -> None:
        self.directory = directory
        self.manifest = read_manifest(directory.path)

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that this directory holds."""
        return self.manifest.modules

    def module(self, name: str) -> Stored:
        """Tensors of the module `name` under the names of its parameters.

        Raises:
            CheckpointError: the model does not hold this module, or a file is missing or damaged.
        """
        if name not in self.modules:
            raise CheckpointError(f"{self.directory.path} holds no {name}; it holds {', '.join(self.modules)}")
        return Stored(f"{self.directory.path} ({name})", self._tensors.get(name, {}))

    def constants(self) -> dict[str, torch.Tensor]:
        """`mean` and `var` (C,), `emotion_matrix` (R, D), `speaker_matrix` (R, S)."""
        constants = self._tensors.get(CONSTANTS, {})
        if set(constants) != {*STATISTICS, *MATRICES}:
            raise CheckpointError(f"{self.directory.path} holds the constants {sorted(constants)}; "
                                  f"it must hold {[*STATISTICS, *MATRICES]}")  # fmt: skip
        return constants

    @cached_property
    def _tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Tensors by module and name, from all files of the manifest."""
        found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in (*self.modules, CONSTANTS)}
        for file, record in self.manifest.files.items():
            if not file.endswith(".safetensors"):
                continue
            path = inside(self.directory.path, file)
            for key, tensor in self._read(path, record).items():
                module, _, name = key.partition(".")
                if module not in found:
                    raise CheckpointError(f"{path}: key {key} belongs to no module of the manifest")
                if name in found[module]:
                    raise CheckpointError(f"{path}: key {key} is in more than one file")
                found[module][name] = tensor
        return found

    def _read(self, path: Path, record: FileRecord) -> dict[str, torch.Tensor]:
        check_size(path, record)
        tensors = read_safetensors(path)
        if record.tensors != len(tensors):
            raise CheckpointError(f"{path} holds {len(tensors)} tensors; the manifest says {record.tensors}")
        return tensors


def check_size(path: Path, record: FileRecord) -> None:
    """Raise CheckpointError when a file is missing or has another size than the manifest says."""
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")
    size = path.stat().st_size
    if size != record.size:
        raise CheckpointError(f"{path} has {size} bytes; the manifest says {record.size}: it is incomplete or changed")


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
