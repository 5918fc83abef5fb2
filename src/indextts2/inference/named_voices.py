"""Reference recordings that come with the package, by name."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from indextts2.errors import UsageError

SUFFIXES = (".opus", ".flac", ".wav")


def named_voices() -> dict[str, Path]:
    """Name -> reference recording, sorted by name."""
    folder = importlib.resources.files("indextts2") / "assets" / "voices"
    if not isinstance(folder, Path) or not folder.is_dir():
        return {}
    return {path.stem: path for path in sorted(folder.iterdir()) if path.suffix in SUFFIXES}


def resolve_speaker(speaker: str | None) -> str | Path:
    """A file as it is, a name as its recording, None as the first named voice.

    Raises:
        UsageError: it is neither a file nor a name.
    """
    voices = named_voices()
    if speaker is None:
        if not voices:
            raise UsageError("no reference given and this installation has no voices; say which with --speaker FILE")
        return next(iter(voices.values()))
    if Path(speaker).exists() or speaker not in voices:
        return speaker
    return voices[speaker]
