"""The file formats that can be written: their encodings and sample rates, and the rule from floats to integers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from io import RawIOBase
from typing import BinaryIO

import numpy as np
import soundfile

from indextts2.audio.resampler import resample
from indextts2.errors import AudioError

# libsndfile 1.2.2 crashes when one call hands it millions of samples to encode as Vorbis.
WRITE_BLOCK_SAMPLES = 65_536

PCM16_PEAK = 32767.0
# Of libsndfile's scale from 0 (best) to 1: about 96 kbit/s at 22.05 kHz.
MP3_COMPRESSION = 0.4


@dataclass(frozen=True)
class OutputFormat:
    """One row of the table: libsndfile's container, the encodings allowed (first is the default), the rates allowed."""

    container: str
    subtypes: tuple[str, ...]
    media_type: str
    sample_rates_hz: tuple[int, ...] = ()


FORMATS = {
    "wav": OutputFormat("WAV", ("PCM_16", "PCM_24", "PCM_32", "FLOAT"), "audio/wav"),
    "flac": OutputFormat("FLAC", ("PCM_16", "PCM_24"), "audio/flac"),
    "ogg": OutputFormat("OGG", ("VORBIS", "OPUS"), "audio/ogg"),
    "opus": OutputFormat("OGG", ("OPUS",), "audio/opus"),
    "mp3": OutputFormat(
        "MP3",
        ("MPEG_LAYER_III",),
        "audio/mpeg",
        (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000),
    ),
    "pcm": OutputFormat("RAW", ("PCM_16", "FLOAT"), "audio/pcm"),
    "raw": OutputFormat("RAW", ("PCM_16", "FLOAT"), "audio/pcm"),
}
OPUS_SAMPLE_RATES_HZ = (8_000, 12_000, 16_000, 24_000, 48_000)


def output_format(name: str, subtype: str | None = None) -> tuple[OutputFormat, str]:
    """The format of this name or extension and its encoding; AudioError names what is possible."""
    found = FORMATS.get(name.lower().lstrip("."))
    if found is None:
        raise AudioError(f"audio format {name!r} cannot be written; choose one of {', '.join(FORMATS)}")
    chosen = found.subtypes[0] if subtype is None else subtype.upper()
    if chosen not in found.subtypes:
        raise AudioError(f"{name} cannot hold {subtype!r}; choose one of {', '.join(found.subtypes)}")
    return found, chosen


def encoder_sample_rate(output: OutputFormat, subtype: str, sample_rate_hz: int) -> int:
    """The rate to encode at: the same where possible, else the next higher one that the codec knows (or its top)."""
    if sample_rate_hz < 1:
        raise AudioError(f"cannot write audio at {sample_rate_hz} Hz; the sample rate must be positive")
    rates = OPUS_SAMPLE_RATES_HZ if subtype == "OPUS" else output.sample_rates_hz
    if not rates:
        return sample_rate_hz
    return min((rate for rate in rates if rate >= sample_rate_hz), default=rates[-1])


def check_samples(samples: np.ndarray) -> np.ndarray:
    """`samples` as a float32 vector; AudioError unless it is one-dimensional, floating and finite."""
    if samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        raise AudioError(f"samples must be a one-dimensional float array, not {samples.dtype} of shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise AudioError(f"{int((~np.isfinite(samples)).sum())} samples are NaN or infinite; they cannot be written")
    return np.ascontiguousarray(samples, dtype=np.float32)


def pcm16(samples: np.ndarray) -> np.ndarray:
    """(N,) floats in [-1, 1] -> int16: 32767 * x in float32, clamped, truncated toward zero (spec 01 section 8)."""
    return np.clip(check_samples(samples) * np.float32(PCM16_PEAK), -PCM16_PEAK, PCM16_PEAK).astype(np.int16)


def encodable(samples: np.ndarray, subtype: str) -> np.ndarray:
    """Samples as the encoder takes them: int16 for 16-bit PCM, untouched floats for FLOAT, else clipped floats."""
    if subtype == "PCM_16":
        return pcm16(samples)
    checked = check_samples(samples)
    return checked if subtype == "FLOAT" else np.clip(checked, -1.0, 1.0)


def raw_bytes(samples: np.ndarray, subtype: str) -> bytes:
    """Samples as little-endian bytes without any header: PCM_16 or FLOAT."""
    return encodable(samples, subtype).astype("<i2" if subtype == "PCM_16" else "<f4").tobytes()


def open_encoder(
    file: BinaryIO | RawIOBase, output: OutputFormat, subtype: str, sample_rate_hz: int, tags: Mapping[str, str]
) -> soundfile.SoundFile:
    """A mono libsndfile encoder that writes to `file`, with its tags set (they must come before the samples)."""
    mp3 = output.container == "MP3"
    sound = soundfile.SoundFile(
        file,
        "w",
        sample_rate_hz,
        1,
        subtype=subtype,
        format=output.container,
        # Constant bit rate: players and libsndfile itself guess the length of streamed MP3 from it.
        compression_level=MP3_COMPRESSION if mp3 else None,
        bitrate_mode="CONSTANT" if mp3 else None,
    )
    for name, text in tags.items():
        setattr(sound, name, text)
    return sound


def write_blocks(sound: soundfile.SoundFile, samples: np.ndarray, subtype: str) -> None:
    """Encode `samples` in blocks."""
    values = encodable(samples, subtype)
    for start in range(0, len(values), WRITE_BLOCK_SAMPLES):
        sound.write(values[start : start + WRITE_BLOCK_SAMPLES])


def encode_to(
    file: BinaryIO,
    samples: np.ndarray,
    sample_rate_hz: int,
    output: OutputFormat,
    subtype: str,
    tags: Mapping[str, str],
) -> None:
    """Encode a whole clip to an open file. Opus and MP3 know few sample rates; others are resampled to the next."""
    checked = check_samples(samples)
    rate_hz = encoder_sample_rate(output, subtype, sample_rate_hz)
    if output.container == "RAW":
        file.write(raw_bytes(checked, subtype))
        return
    try:
        with open_encoder(file, output, subtype, rate_hz, tags) as sound:
            write_blocks(sound, resample(checked, sample_rate_hz, rate_hz), subtype)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", None) or error
        raise AudioError(f"cannot encode as {output.container} {subtype} at {rate_hz} Hz: {reason}") from error
