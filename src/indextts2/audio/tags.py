"""Metadata written into audio files: free tags, and the mark that the speech is synthetic."""

from __future__ import annotations

import struct
from collections.abc import Mapping

PROVENANCE = "synthetic speech"
SOFTWARE = "indextts2"

# Tags that audio files carry by name, with their chunk in a WAV file. Anything else goes into the comment.
INFO_CHUNKS = {
    "title": b"INAM",
    "artist": b"IART",
    "album": b"IPRD",
    "date": b"ICRD",
    "genre": b"IGNR",
    "copyright": b"ICOP",
    "comment": b"ICMT",
    "software": b"ISFT",
}


def file_tags(metadata: Mapping[str, str] | None, synthetic: bool = True) -> dict[str, str]:
    """Tags to write: known names as they are, others as `name=value` in the comment.

    With `synthetic` the comment begins with "synthetic speech" (first, as MP3 readers may cut comments short),
    and the software is named.
    """
    tags: dict[str, str] = {}
    comment = [PROVENANCE] if synthetic else []
    for key, value in (metadata or {}).items():
        text = _printable(str(value))
        if key == "comment":
            comment.append(text)
        elif key in INFO_CHUNKS:
            tags[key] = text
        else:
            comment.append(f"{_printable(key)}={text}")
    if comment:
        tags["comment"] = "; ".join(comment)
    if synthetic:
        tags.setdefault("software", SOFTWARE)
    return tags


def wav_info_chunk(tags: Mapping[str, str]) -> bytes:
    """The LIST chunk of a WAV file with these tags; empty without tags."""
    fields = b""
    for name, text in tags.items():
        data = text.encode() + b"\0"
        fields += INFO_CHUNKS[name] + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"LIST" + struct.pack("<I", 4 + len(fields)) + b"INFO" + fields if fields else b""


def _printable(text: str) -> str:
    """`text` without control characters and lone surrogates, which no container stores."""
    return "".join(c if c.isprintable() else " " for c in text)
