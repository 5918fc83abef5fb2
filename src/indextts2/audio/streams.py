"""Audio written while it is made: a growing WAV file or pipe, and an encoder that returns bytes chunk by chunk."""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, BinaryIO, Self

import numpy as np
import soundfile
import soxr

from indextts2.audio.containers import id3_bytes
from indextts2.audio.formats import (
    check_samples,
    encoder_sample_rate,
    open_encoder,
    output_format,
    raw_bytes,
    write_blocks,
)
from indextts2.audio.tags import file_tags, wav_info_chunk
from indextts2.errors import AudioError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# What both size fields of a WAV header say while the length is unknown.
OPEN_SIZE = 0xFFFF_FFFF


def wav_header(
    sample_rate_hz: int, subtype: str = "PCM_16", tags: Mapping[str, str] | None = None, data_bytes: int | None = None
) -> bytes:
    """Header of a mono WAV file up to its first sample; without `data_bytes` both size fields are 0xFFFFFFFF."""
    bytes_per_sample = 2 if subtype == "PCM_16" else 4
    encoding = 1 if subtype == "PCM_16" else 3
    rate = encoder_sample_rate(*output_format("wav", subtype), sample_rate_hz)
    layout = (encoding, 1, rate, rate * bytes_per_sample, bytes_per_sample, 8 * bytes_per_sample)
    body = b"WAVEfmt " + struct.pack("<IHHIIHH", 16, *layout)
    body += wav_info_chunk(tags or {})
    riff_bytes = OPEN_SIZE if data_bytes is None else len(body) + 8 + data_bytes
    if data_bytes is None or riff_bytes > OPEN_SIZE:
        data_bytes = riff_bytes = OPEN_SIZE
    return b"RIFF" + struct.pack("<I", riff_bytes) + body + b"data" + struct.pack("<I", data_bytes)


class StreamingWavWriter:
    """Writes a mono WAV while the audio is being made, to a path or a binary stream (a pipe, standard output).

    Until `close` the header says that the length is unknown, which readers accept; where the target can seek, `close`
    fills it in. A path is closed, a stream given by the caller is left open. Errors of writing are AudioError, except
    BrokenPipeError, by which a reader says that it has had enough.
    """

    def __init__(
        self,
        target: str | Path | BinaryIO,
        sample_rate: int,
        subtype: str = "PCM_16",
        metadata: Mapping[str, str] | None = None,
        synthetic: bool = True,
    ) -> None:
        if subtype not in ("PCM_16", "FLOAT"):
            raise AudioError(f"a WAV stream cannot hold {subtype!r}; choose PCM_16 or FLOAT")
        self.sample_rate = sample_rate
        self.samples_written = 0
        self._subtype = subtype
        self._tags = file_tags(metadata, synthetic)
        header = wav_header(sample_rate, subtype, self._tags)
        self._owned = isinstance(target, (str, Path))
        self._file = _open_for_writing(target) if isinstance(target, (str, Path)) else target
        self._closed = False
        self._start = self._file.tell() if self._file.seekable() else None
        self._put(header)

    def write(self, samples: np.ndarray) -> None:
        """Append (N,) float samples in [-1, 1] and flush them."""
        if self._closed:
            raise AudioError("the WAV stream is closed; open a new one to write more")
        self._put(raw_bytes(samples, self._subtype))
        self.samples_written += len(samples)

    def close(self) -> None:
        """Fill in the length where the target can seek; close the file when it was given as a path."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._start is not None:
                data_bytes = self.samples_written * (2 if self._subtype == "PCM_16" else 4)
                self._file.seek(self._start)
                self._put(wav_header(self.sample_rate, self._subtype, self._tags, data_bytes))
                self._file.seek(0, io.SEEK_END)
        finally:
            if self._owned:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, data: bytes) -> None:
        try:
            self._file.write(data)
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise AudioError(f"the WAV stream cannot be written: {error.strerror or error}") from error


class StreamEncoder:
    """Encodes chunks one after the other: `encode` returns the bytes that are ready, `finish` the rest.

    The bytes joined are a stream that players decode, not byte for byte a file: its header cannot be completed
    afterwards, so it says nothing of the length. Codecs hold samples back: Opus and Vorbis about a second.
    """

    def __init__(
        self, format_name: str, sample_rate: int, metadata: Mapping[str, str] | None = None, synthetic: bool = True
    ) -> None:
        self.output, self._subtype = output_format(format_name)
        self.media_type = self.output.media_type
        self.encoded_sample_rate = encoder_sample_rate(self.output, self._subtype, sample_rate)
        self._sink = _Sink()
        self._sound: soundfile.SoundFile | None = None
        tags = file_tags(metadata, synthetic)
        if self.output.container == "WAV":
            self._sink.write(wav_header(sample_rate, self._subtype, tags))
        elif self.output.container != "RAW":
            self._sound = open_encoder(self._sink, self.output, self._subtype, self.encoded_sample_rate, tags)
        self._resampler = None
        if self.encoded_sample_rate != sample_rate:
            self._resampler = soxr.ResampleStream(sample_rate, self.encoded_sample_rate, 1, "float32", "HQ")
        self._samples_in = 0
        self._ready = b""

    def encode(self, samples: np.ndarray) -> bytes:
        """Take (N,) float samples in [-1, 1]; return the bytes that are ready (may be none)."""
        checked = check_samples(samples)
        if self._resampler is not None:
            checked = self._resampler.resample_chunk(checked)
        self._write(checked)
        return self._take()

    def finish(self) -> bytes:
        """Return the last bytes; the encoder takes no more samples after it."""
        if self._resampler is not None:
            self._write(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        if self._sound is not None:
            self._sound.close()
        return self._take()

    def _take(self) -> bytes:
        data = self._ready + self._sink.take()
        self._ready = b""
        return data

    def _write(self, samples: np.ndarray) -> None:
        """Encode samples; of MP3 without its first frame.

        That frame is a placeholder for the length, which a stream cannot fill in, and decoders would believe it. It
        appears alone when the first sample is written, after the tags.
        """
        if not len(samples):
            return
        if self._sound is None:
            self._sink.write(raw_bytes(samples, self._subtype))
        elif self._samples_in == 0 and self.output.container == "MP3":
            write_blocks(self._sound, samples[:1], self._subtype)
            first = self._sink.take()
            self._ready = first[: id3_bytes(first[:10])]
            write_blocks(self._sound, samples[1:], self._subtype)
        else:
            write_blocks(self._sound, samples, self._subtype)
        self._samples_in += len(samples)


class _Sink(io.RawIOBase):
    """Memory file for libsndfile that gives away what was appended and ignores later changes of it."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._taken = 0
        self._position = 0

    def take(self) -> bytes:
        """Bytes appended since the last call."""
        data = bytes(self._pending)
        self._taken += len(data)
        self._pending.clear()
        return data

    def write(self, data: ReadableBuffer, /) -> int:
        chunk = bytes(data)
        start = self._position - self._taken
        self._position += len(chunk)
        if start >= 0:
            self._pending[start : start + len(chunk)] = chunk
        elif start + len(chunk) > 0:
            self._pending[: start + len(chunk)] = chunk[-start:]
        return len(chunk)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self._taken + len(self._pending)
        self._position = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: end}[whence] + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def seekable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True


def _open_for_writing(path: str | Path) -> BinaryIO:
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("wb")
    except OSError as error:
        raise AudioError(f"{path} cannot be written: {error.strerror or error}") from error
