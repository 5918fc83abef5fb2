"""What a file says about itself before a decoder sees it: its container, and whether a WAV header is sound.

The decoder (libsndfile) accepts headers that make no sense (a rate of 1 Hz, 1000 channels, data cut off), and has
had memory errors in rarely used encodings such as ADPCM; so these are refused from the header alone.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

from indextts2.errors import AudioError

SUPPORTED = "WAV, FLAC, OGG (Vorbis or Opus) and MP3"
CONVERT = f"supported are {SUPPORTED}; convert it with: ffmpeg -i INPUT -ac 1 output.wav"

MIN_SAMPLE_RATE_HZ = 4_000
MAX_SAMPLE_RATE_HZ = 384_000
MAX_CHANNELS = 64

# PCM, IEEE float, A-law, mu-law, and the extensible form of these.
WAV_ENCODINGS = {0x0001, 0x0003, 0x0006, 0x0007, 0xFFFE}
# Writers that cannot seek leave the size open: 0xFFFFFFFF, or a number near 2**31 as sox does.
OPEN_SIZE = 0x7FFF_F000

_FOREIGN = (
    (b"\x89PNG", 0, "a PNG image"),
    (b"\xff\xd8\xff", 0, "a JPEG image"),
    (b"GIF8", 0, "a GIF image"),
    (b"%PDF", 0, "a PDF document"),
    (b"PK\x03\x04", 0, "a ZIP archive"),
    (b"\x1f\x8b", 0, "gzip data"),
    (b"ftyp", 4, "an MP4 or M4A file"),
    (b"\x1a\x45\xdf\xa3", 0, "a Matroska or WebM file"),
    (b"AVI ", 8, "an AVI video"),
    (b"FORM", 0, "an AIFF file"),
    (b"<", 0, "a text document"),
)


def container_of(head: bytes, name: str) -> str:
    """Name the container ("WAV", "FLAC", "OGG", "MP3") from the first bytes, or raise AudioError saying what it is."""
    if not head:
        raise AudioError(f"{name} is empty (0 bytes); supported are {SUPPORTED}")
    if head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE":
        return "WAV"
    if head[:4] == b"fLaC":
        return "FLAC"
    if head[:4] == b"OggS":
        return "OGG"
    for magic, offset, what in _FOREIGN:
        if head[offset : offset + len(magic)] == magic:
            raise AudioError(f"{name} is {what}, not audio that can be read here; {CONVERT}")
    if head[:3] == b"ID3" or (len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0):
        return "MP3"
    raise AudioError(f"{name} is not a known audio format (it begins with {head[:8]!r}); {CONVERT}")


def check_format(sample_rate_hz: int, channels: int, name: str) -> None:
    """Raise AudioError when the rate or the number of channels is out of range."""
    if not MIN_SAMPLE_RATE_HZ <= sample_rate_hz <= MAX_SAMPLE_RATE_HZ:
        raise AudioError(
            f"{name} has a sample rate of {sample_rate_hz} Hz; "
            f"it must lie in {MIN_SAMPLE_RATE_HZ}..{MAX_SAMPLE_RATE_HZ} Hz"
        )
    if not 1 <= channels <= MAX_CHANNELS:
        raise AudioError(f"{name} has {channels} channels; the number must lie in 1..{MAX_CHANNELS}")


def check_wav(file: BinaryIO, name: str) -> None:
    """Walk the chunks of a WAV file up to its samples; raise AudioError for what cannot be right or is cut off."""
    file_bytes = file.seek(0, 2)
    position = 12
    seen_format = False
    while position + 8 <= file_bytes:
        file.seek(position)
        chunk_id, size = struct.unpack("<4sI", file.read(8))
        position += 8
        if chunk_id == b"fmt ":
            _check_wav_format(file.read(min(size, 16)), name)
            seen_format = True
        elif chunk_id == b"data":
            if not seen_format:
                raise AudioError(f"{name} has samples but no format chunk before them; the file is damaged")
            _check_wav_data(size, file_bytes - position, name)
            return
        position += size + size % 2
    raise AudioError(f"{name} is a WAV file without samples (no data chunk in {file_bytes} bytes); record it again")


def _check_wav_format(chunk: bytes, name: str) -> None:
    if len(chunk) < 16:
        raise AudioError(f"{name} has a format chunk of {len(chunk)} bytes; at least 16 are needed")
    encoding, channels, sample_rate_hz, _, _, _ = struct.unpack("<HHIIHH", chunk)
    check_format(sample_rate_hz, channels, name)
    if encoding not in WAV_ENCODINGS:
        raise AudioError(
            f"{name} uses WAV encoding 0x{encoding:04X}; only PCM, float, A-law and mu-law are read; {CONVERT}"
        )


def _check_wav_data(declared_bytes: int, present_bytes: int, name: str) -> None:
    if declared_bytes == 0 or present_bytes == 0:
        raise AudioError(f"{name} holds no samples; record or export it again")
    if present_bytes < declared_bytes < OPEN_SIZE:
        raise AudioError(
            f"{name} is cut off: its header announces {declared_bytes} bytes of samples, {present_bytes} are there; "
            "copy or export it again"
        )


def check_ogg_end(file: BinaryIO, name: str) -> None:
    """Raise AudioError when the last Ogg page is incomplete: the decoder would silently drop it."""
    file_bytes = file.seek(0, 2)
    # A page is at most 27 + 255 + 255 * 255 bytes.
    start = max(0, file_bytes - 2 * 65_307)
    file.seek(start)
    tail = file.read()
    page = tail.rfind(b"OggS")
    complete = page >= 0 and len(tail) >= page + 27
    if complete:
        segments = tail[page + 26]
        lacing = tail[page + 27 : page + 27 + segments]
        complete = len(lacing) == segments and len(tail) >= page + 27 + segments + sum(lacing)
    if not complete:
        raise AudioError(f"{name} is cut off: its last Ogg page is incomplete; copy or export it again")


def id3_bytes(head: bytes) -> int:
    """Length of the ID3v2 tag that begins with `head` (its first 10 bytes): 10 and four times seven bits; else 0."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    return 10 + sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))


def mp3_announces_length(file: BinaryIO) -> bool:
    """Whether the first MPEG frame tells the length; without it the decoder guesses from the bit rate.

    The position of `file` is kept.
    """
    position = file.tell()
    file.seek(0)
    file.seek(id3_bytes(file.read(10)))
    first_frame = file.read(64)
    file.seek(position)
    return b"Xing" in first_frame or b"Info" in first_frame
