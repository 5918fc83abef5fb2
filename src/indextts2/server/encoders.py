"""Encoders of the formats that can be asked for: those of the audio package, and AAC where PyAV is installed."""

from __future__ import annotations

import io
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Protocol

import numpy as np

from indextts2.audio.formats import check_samples
from indextts2.audio.tags import file_tags
from indextts2.audio.writer import StreamEncoder, encode_audio
from indextts2.errors import MissingExtraError

AAC_BITS_PER_SECOND = 96_000
AAC_MEDIA_TYPE = "audio/aac"


class Encoder(Protocol):
    """Turns samples into bytes while they come."""

    media_type: str
    encoded_sample_rate: int

    def encode(self, samples: np.ndarray) -> bytes:
        """Take (N,) float samples; return the bytes that are ready."""

    def finish(self) -> bytes:
        """The last bytes."""


def has_encoder(name: str) -> bool:
    """Whether the package that this format needs is there."""
    return name != "aac" or find_spec("av") is not None


def check_encoder(name: str) -> None:
    """Raise MissingExtraError if this format needs a package that is not there."""
    if not has_encoder(name):
        raise MissingExtraError("AAC", "aac")


def stream_encoder(name: str, sample_rate: int, tags: Mapping[str, str]) -> Encoder:
    """An encoder for audio that is still being made."""
    check_encoder(name)
    return AacEncoder(sample_rate, tags) if name == "aac" else StreamEncoder(name, sample_rate, tags)


def encode_file(name: str, samples: np.ndarray, sample_rate: int, tags: Mapping[str, str]) -> bytes:
    """The bytes of a complete file."""
    if name != "aac":
        return encode_audio(samples, sample_rate, name, metadata=tags)
    encoder = stream_encoder(name, sample_rate, tags)
    return encoder.encode(samples) + encoder.finish()


class AacEncoder:
    """AAC in ADTS frames, which can be played from any frame on, behind an ID3 tag."""

    media_type = AAC_MEDIA_TYPE

    def __init__(self, sample_rate: int, tags: Mapping[str, str]) -> None:
        import av

        self.encoded_sample_rate = sample_rate
        self._sink = io.BytesIO()
        self._container = av.open(self._sink, "w", format="adts", options={"write_id3v2": "1"})
        self._container.metadata.update(file_tags(tags))
        self._stream = self._container.add_stream("aac", rate=sample_rate, layout="mono")
        self._stream.bit_rate = AAC_BITS_PER_SECOND
        self._samples_in = 0

    def encode(self, samples: np.ndarray) -> bytes:
        """Take (N,) float samples in [-1, 1]; return the bytes that are ready (may be none)."""
        import av

        if not len(samples):
            return b""
        clipped = np.clip(check_samples(samples), -1.0, 1.0)
        frame = av.AudioFrame.from_ndarray(clipped[None], format="fltp", layout="mono")
        frame.sample_rate, frame.pts = self.encoded_sample_rate, self._samples_in
        self._samples_in += len(samples)
        self._container.mux(self._stream.encode(frame))
        return self._take()

    def finish(self) -> bytes:
        """Return the last bytes; the encoder takes no more samples after it."""
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._take()

    def _take(self) -> bytes:
        data = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return data
