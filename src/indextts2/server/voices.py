"""The voices that can be asked for: those that come with the package, and those that were uploaded.

An uploaded voice is one safetensors file, in whose header stand its name, the consent and the rest. A file appears
complete or not at all, so a server that is killed at any moment finds its voices again.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import time
from typing import TYPE_CHECKING

from safetensors import SafetensorError, safe_open

from indextts2.errors import CheckpointError, UsageError
from indextts2.inference.named_voices import named_voices
from indextts2.inference.voice import Voice
from indextts2.server.errors import ApiError
from indextts2.server.voice_names import check_name, file_stem, name_key

if TYPE_CHECKING:
    from indextts2.inference.pipeline import Speaker

log = logging.getLogger(__name__)

SUFFIX = ".safetensors"
DEFAULT_NAME = "default"
CACHE_SIZE = 32
_STORED = re.compile(r"[0-9a-f]{32}\.safetensors")
_PARTIAL = re.compile(r"\.[0-9a-f]{32}\.safetensors\..+")


@dataclass(frozen=True)
class UploadedVoice:
    """What is told of an uploaded voice."""

    name: str
    consent: str
    created_at: int
    file_size: int
    mime_type: str
    model: str
    ref_text: str = ""
    speaker_description: str = ""


class VoiceRegistry:
    """Uploaded voices in one directory, which belongs to one server. Safe for threads."""

    def __init__(self, directory: Path, max_voices: int) -> None:
        self.directory = directory
        self.max_voices = max_voices
        self._lock = threading.Lock()
        self._loaded: OrderedDict[tuple[str, int, int], Voice] = OrderedDict()

    def prepare(self) -> None:
        """Make the directory and remove what a killed server left half written.

        Raises:
            UsageError: the directory cannot be made or written.
        """
        try:
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in self.directory.iterdir():
                if _PARTIAL.fullmatch(path.name):
                    path.unlink(missing_ok=True)
        except OSError as error:
            raise UsageError(f"the voices directory {self.directory} cannot be used: {error.strerror}") from error
        if not os.access(self.directory, os.W_OK):
            raise UsageError(f"the voices directory {self.directory} cannot be written; name another")

    def all(self) -> list[UploadedVoice]:
        """All voices that can be read, by name; damaged files are left out with a warning."""
        found = []
        for path in self._paths():
            try:
                found.append(_describe(_read_header(path)))
            except (OSError, SafetensorError, ValueError, KeyError) as error:
                log.warning("the voice file %s is skipped: %s", path.name, error)
        return sorted(found, key=lambda voice: name_key(voice.name))

    def check_free(self, name: str) -> None:
        """ApiError 409 when the name is taken or there are as many voices as there may be."""
        if self._path(name).exists():
            raise ApiError(
                409, f"there is a voice named {name!r} (case does not matter); delete it first", param="name",
                code="voice_exists",
            )  # fmt: skip
        if len(self._paths()) >= self.max_voices:
            raise ApiError(409, f"there are {self.max_voices} voices, which is the limit; delete one first",
                           code="too_many_voices")  # fmt: skip

    def add(self, name: str, voice: Voice, facts: Mapping[str, str]) -> UploadedVoice:
        """Keep a voice under `name`, which must be checked and free.

        Raises:
            ApiError: 409 as in `check_free`.
        """
        kept = replace(voice, name=name, metadata={**facts, "created_at": str(int(time()))})
        with self._lock:
            self.check_free(name)
            path = kept.save(self._path(name))
            _sync(path)
        return _describe(_read_header(path))

    def get(self, name: str) -> Voice | None:
        """The voice of this name, None if there is none.

        Raises:
            CheckpointError: its file is damaged.
        """
        path = self._path(name)
        return self._load(path) if path.is_file() and not path.is_symlink() else None

    def remove(self, name: str) -> bool:
        """Delete a voice; False if there is none."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            return False
        return True

    def _path(self, name: str) -> Path:
        return self.directory / (file_stem(name) + SUFFIX)

    def _paths(self) -> list[Path]:
        """Voice files. A link is no voice: it could lead out of the directory."""
        return [p for p in self.directory.iterdir() if _STORED.fullmatch(p.name) and not p.is_symlink() and p.is_file()]

    def _load(self, path: Path) -> Voice:
        """Read a file, or take it from memory if it has not changed."""
        try:
            status = path.stat()
        except OSError as error:
            raise CheckpointError(f"cannot read the voice file {path}: {error.strerror}") from error
        key = (path.name, status.st_mtime_ns, status.st_size)
        with self._lock:
            if key in self._loaded:
                self._loaded.move_to_end(key)
                return self._loaded[key]
        voice = Voice.load(path)
        with self._lock:
            self._loaded[key] = voice
            while len(self._loaded) > CACHE_SIZE:
                self._loaded.popitem(last=False)
        return voice


class VoiceLibrary:
    """All voices by name. `default` is the first one that comes with the package, else the first uploaded one."""

    def __init__(self, registry: VoiceRegistry, aliases: Mapping[str, str]) -> None:
        self.registry = registry
        self.aliases = dict(aliases)

    def names(self) -> list[str]:
        """Names of all voices, the default one first, aliases of voices that are there last."""
        names = self._own_names()
        keys = {name_key(name) for name in names}
        return names + [alias for alias, name in self.aliases.items() if name_key(name) in keys and alias not in names]

    def _own_names(self) -> list[str]:
        names = [*named_voices(), *(voice.name for voice in self.registry.all())]
        return list(dict.fromkeys(names))

    def check_free(self, name: str) -> None:
        """ApiError 409 when `name` is a voice of the package, an alias, reserved, or `VoiceRegistry.check_free`."""
        taken = {name_key(other) for other in (*named_voices(), *self.aliases, DEFAULT_NAME)}
        if name_key(name) in taken:
            raise ApiError(409, f"the name {name!r} belongs to a built-in voice; choose another", param="name",
                           code="voice_exists")  # fmt: skip
        self.registry.check_free(name)

    def speaker(self, name: str | None) -> Speaker:
        """The voice of this name, None or `default`: the default one.

        Raises:
            UsageError: there is no such voice.
        """
        wanted = self.aliases.get(name, name) if name is not None else None
        if wanted is None or wanted == DEFAULT_NAME:
            wanted = next(iter(self._own_names()), None)
            if wanted is None:
                raise UsageError("there is no voice yet; upload one to /v1/audio/voices or send ref_audio")
        if (packaged := named_voices().get(wanted)) is not None:
            return packaged
        voice = self.registry.get(check_name(wanted))
        if voice is None:
            known = ", ".join(self.names()[:10]) or "none"
            raise UsageError(f"there is no voice {wanted!r}; there are: {known}")
        return voice


def _read_header(path: Path) -> dict[str, str]:
    """The words in the header of a voice file; the tensors are not read."""
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})


def _describe(header: Mapping[str, str]) -> UploadedVoice:
    return UploadedVoice(
        name=header["name"],
        consent=header["meta.consent"],
        created_at=int(header["meta.created_at"]),
        file_size=int(header["meta.file_size"]),
        mime_type=header["meta.mime_type"],
        model=header["model"],
        ref_text=header.get("meta.ref_text", ""),
        speaker_description=header.get("meta.speaker_description", ""),
    )


def _sync(path: Path) -> None:
    """Have the file and its name on the disk before the upload is answered."""
    # Windows cannot open a directory to sync it.
    for target in (path, path.parent) if os.name == "posix" else (path,):
        handle = os.open(target, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
