"""Signals and hand-made WAV files for the tests of audio."""

from __future__ import annotations

import struct

import numpy as np


def tone(seconds: float = 1.5, sample_rate_hz: int = 22050, hz: float = 440.0) -> np.ndarray:
    """A tone with a little noise, as float32 within [-0.6, 0.6]."""
    t = np.arange(round(seconds * sample_rate_hz)) / sample_rate_hz
    noise = np.random.default_rng(7).uniform(-0.1, 0.1, len(t))
    return (0.5 * np.sin(2 * np.pi * hz * t) + noise).astype(np.float32)


def wav_bytes(
    data: bytes,
    sample_rate_hz: int = 16000,
    channels: int = 1,
    bits: int = 16,
    encoding: int = 1,
    data_size: int | None = None,
    riff_size: int | None = None,
) -> bytes:
    """A WAV file whose header says whatever is asked for."""
    size = len(data) if data_size is None else data_size
    frame_bytes = channels * bits // 8
    layout = (encoding, channels, sample_rate_hz, sample_rate_hz * frame_bytes % 2**32, frame_bytes % 2**16, bits)
    riff = (36 + size) % 2**32 if riff_size is None else riff_size
    header = b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, *layout)
    return header + b"data" + struct.pack("<I", size) + data


def float_wav(samples: np.ndarray, sample_rate_hz: int = 16000) -> bytes:
    return wav_bytes(samples.astype("<f4").tobytes(), sample_rate_hz, bits=32, encoding=3)
