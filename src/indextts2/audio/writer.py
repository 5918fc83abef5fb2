"""Writing audio: whole files, encoded bytes, and (from `streams`) audio that is still being made."""

from __future__ import annotations

import io
import os
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from indextts2.audio.formats import FORMATS, OutputFormat, encode_to, output_format, pcm16
from indextts2.audio.streams import StreamEncoder, StreamingWavWriter
from indextts2.audio.tags import PROVENANCE, file_tags
from indextts2.errors import AudioError

__all__ = [
    "FORMATS",
    "PROVENANCE",
    "StreamEncoder",
    "StreamingWavWriter",
    "encode_audio",
    "pcm16",
    "write_audio",
]


def write_audio(
    path: str | Path,
    samples: np.ndarray,
    sample_rate: int,
    subtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    synthetic: bool = True,
) -> Path:
    """Write (N,) float samples in [-1, 1]; the extension names the format (wav, flac, ogg, opus, mp3, pcm, raw).

    Parent directories are made. The file appears at once and complete: it is written beside its place and moved there.
    16-bit formats hold exactly `pcm16(samples)`. Opus and MP3 know few sample rates; others are resampled.

    Args:
        subtype: encoding within the format, such as "FLOAT" or "PCM_24" for WAV; the first of `FORMATS` by default.
        metadata: tags; names that files do not know become part of the comment.
        synthetic: mark the file as synthetic speech, in its comment. Say False for recordings of people.

    Raises:
        AudioError: unknown format, samples that are not a finite float vector, or a file that cannot be written.
    """
    path = Path(path)
    output, chosen = output_format(path.suffix or path.name, subtype)
    data = _Clip(samples, sample_rate, output, chosen, file_tags(metadata, synthetic))
    # A link is kept, and what it points to is replaced.
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists() and not target.is_file():
            # A pipe or device cannot be replaced.
            target.write_bytes(data.encode())
        else:
            _replace(target, data)
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror or error}; check the path") from error
    return path


def encode_audio(
    samples: np.ndarray,
    sample_rate: int,
    format: str,
    subtype: str | None = None,
    metadata: Mapping[str, str] | None = None,
    synthetic: bool = True,
) -> bytes:
    """The bytes of the file that `write_audio` would write with the extension `format`."""
    output, chosen = output_format(format, subtype)
    return _Clip(samples, sample_rate, output, chosen, file_tags(metadata, synthetic)).encode()


@dataclass(frozen=True)
class _Clip:
    """Everything that one file is made of."""

    samples: np.ndarray
    sample_rate: int
    output: OutputFormat
    subtype: str
    tags: dict[str, str]

    def encode_to(self, file: BinaryIO) -> None:
        encode_to(file, self.samples, self.sample_rate, self.output, self.subtype, self.tags)

    def encode(self) -> bytes:
        buffer = io.BytesIO()
        self.encode_to(buffer)
        return buffer.getvalue()


def _replace(target: Path, clip: _Clip) -> None:
    """Write beside `target`, then move there; nothing is left behind when writing fails."""
    partial = target.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with partial.open("xb+") as file:
            clip.encode_to(file)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
