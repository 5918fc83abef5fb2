"""Reading audio: formats, sources, limits while decoding, and the catalogue of bad input."""

from __future__ import annotations

import io
import logging
import os
import struct
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from indextts2.audio.loader import AudioTooLongError, check_reference, load_audio, load_reference
from indextts2.errors import AudioError
from indextts2.types import Waveform
from tests.audio.signals import float_wav, tone, wav_bytes

PNG = b"\x89PNG\r\n\x1a\n" + bytes(200)
MP4 = b"\x00\x00\x00\x20ftypisom" + bytes(200)
SECOND = tone(1.2, 16000)
PCM = (SECOND * 32767).astype("<i2").tobytes()


def encoded(format: str, subtype: str | None = None, rate: int = 24000, seconds: float = 2.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(seconds, rate), rate, format=format, subtype=subtype)
    return buffer.getvalue()


def spoiled(value: float) -> bytes:
    samples = SECOND.copy()
    samples[1600] = value
    return float_wav(samples)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "PCM_16"), ("WAV", "PCM_24"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAVEX", "PCM_16"), ("RF64", "PCM_16"),
     ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)],
)  # fmt: skip
def test_reads_every_supported_format(format: str, subtype: str | None, tmp_path: Path) -> None:
    data = encoded(format, subtype)
    path = tmp_path / "clip.bin"
    path.write_bytes(data)
    waveform = load_audio(path)
    assert (waveform.sample_rate, len(waveform.samples), waveform.samples.dtype) == (24000, 48000, np.float32)
    assert np.corrcoef(waveform.samples, tone(2.0, 24000))[0, 1] > 0.95
    for source in (str(path), data, io.BytesIO(data)):
        assert np.array_equal(load_audio(source).samples, waveform.samples)


def test_channels_are_averaged_in_float32() -> None:
    stereo = np.stack([tone(1.0, 16000, 300), tone(1.0, 16000, 700)], axis=1)
    buffer = io.BytesIO()
    soundfile.write(buffer, stereo, 16000, format="WAV", subtype="FLOAT")
    assert np.array_equal(load_audio(buffer.getvalue()).samples, stereo.T.mean(axis=0))


def test_a_pipe_is_read() -> None:
    reading, writing = os.pipe()

    def feed() -> None:
        with os.fdopen(writing, "wb") as file:
            file.write(wav_bytes(PCM))

    thread = threading.Thread(target=feed)
    thread.start()
    with os.fdopen(reading, "rb") as file:
        waveform = load_audio(file)
    thread.join()
    assert len(waveform.samples) == len(SECOND)


def test_a_stream_is_read_from_where_it_stands() -> None:
    stream = io.BytesIO(b"header" + wav_bytes(PCM))
    stream.seek(6)
    assert len(load_audio(stream).samples) == len(SECOND)


def test_a_waveform_passes_through() -> None:
    waveform = Waveform(SECOND, 16000)
    assert load_audio(waveform) is waveform


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000], ids=hex)
def test_open_sizes_of_streamed_wav_are_accepted(size: int) -> None:
    """Catalogue 6."""
    assert len(load_audio(wav_bytes(PCM, data_size=size, riff_size=0xFFFFFFFF)).samples) == len(SECOND)


def test_chunks_before_the_samples_are_skipped() -> None:
    plain = wav_bytes(PCM)
    odd_chunk = b"LIST" + struct.pack("<I", 5) + b"INFOx\0"
    assert len(load_audio(plain[:36] + odd_chunk + plain[36:]).samples) == len(SECOND)


# Number in the catalogue, what it is, the bytes, what the message must say.
BAD: list[tuple[str, bytes, str]] = [
    ("1 empty file", b"", "empty"),
    ("2 PNG named wav", PNG, "PNG image"),
    ("2 unknown bytes", b"hello, world!", "not a known audio format"),
    ("3 RIFF without data", wav_bytes(b"")[:36], "no data chunk"),
    ("3 RIFF header only", b"RIFF\x04\0\0\0WAVE", "no data chunk"),
    ("3 data without format", b"RIFF\x10\0\0\0WAVEdata\x04\0\0\0\0\0\0\0", "no format chunk"),
    ("3 short format chunk", b"RIFF\x10\0\0\0WAVEfmt \x04\0\0\0\1\0\1\0", "format chunk of 4 bytes"),
    ("4 zero frames", wav_bytes(b""), "no samples"),
    ("5 truncated WAV", wav_bytes(PCM)[:-2000], "cut off"),
    ("5 truncated FLAC", encoded("FLAC")[:-3000], "cut off|cannot be decoded"),
    ("5 truncated Vorbis", encoded("OGG", "VORBIS")[:-1000], "cut off"),
    ("5 truncated Opus", encoded("OGG", "OPUS")[:-1000], "cut off"),
    ("5 truncated MP3", encoded("MP3")[:-3000], "cut off"),
    ("7 rate 0", wav_bytes(PCM, 0), "0 Hz"),
    ("7 rate 4e9", wav_bytes(PCM, 4_000_000_000), "4000000000 Hz"),
    ("8 rate 1", wav_bytes(PCM, 1), "1 Hz"),
    ("9 no channels", wav_bytes(PCM, channels=0), "0 channels"),
    ("9 65535 channels", wav_bytes(PCM, channels=65535), "65535 channels"),
    ("10 1000 channels", wav_bytes(PCM, channels=1000), "1000 channels"),
    ("11 NaN", spoiled(float("nan")), "NaN.*0.100 s"),
    ("12 infinity", spoiled(float("inf")), "infinite"),
    ("12 minus infinity", spoiled(float("-inf")), "infinite"),
    ("19 MS ADPCM", wav_bytes(PCM, bits=4, encoding=2), "encoding 0x0002"),
    ("19 IMA ADPCM", wav_bytes(PCM, bits=4, encoding=0x11), "encoding 0x0011"),
    ("20 damaged FLAC", b"fLaC" + bytes(range(256)) * 4, "cannot be decoded|Hz"),
    ("20 damaged Ogg", b"OggS" + bytes(300), "cannot be decoded"),
    ("20 damaged MP3", b"\xff\xfb\x90\xc4" + bytes(300), "cannot be decoded|no samples"),
    ("21 MP4", MP4, "MP4.*ffmpeg"),
    ("21 Matroska", b"\x1a\x45\xdf\xa3" + bytes(99), "Matroska"),
    ("21 AVI", b"RIFF\x00\x01\x00\x00AVI " + bytes(99), "AVI"),
    ("24 HTML", b"<!DOCTYPE html><html></html>", "text document"),
    ("25 gzip", b"\x1f\x8b\x08" + bytes(99), "gzip"),
]


@pytest.mark.parametrize(("data", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_an_audio_error(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "voice.wav"
    path.write_bytes(data)
    with pytest.raises(AudioError, match=rf"voice\.wav.*({message})"):
        load_audio(path)
    with pytest.raises(AudioError, match=message):
        load_reference(data)


def test_paths_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"missing\.wav cannot be opened: No such file"):
        load_audio(tmp_path / "missing.wav")
    with pytest.raises(AudioError, match="directory"):
        load_audio(tmp_path)


@pytest.mark.parametrize(
    ("samples", "rate"),
    [
        (np.zeros((2, 16000), np.float32), 16000),
        (np.zeros(16000, np.int16), 16000),
        (np.zeros(0, np.float32), 16000),
        ([0.0] * 16000, 16000),
        (np.zeros(16000, np.float32), 0),
        (np.full(16000, np.nan, np.float32), 16000),
    ],
    ids=["two-dimensional", "integers", "empty", "list", "rate 0", "NaN"],
)
def test_bad_waveforms(samples: Any, rate: int) -> None:
    with pytest.raises(AudioError):
        load_audio(Waveform(samples, rate))
    with pytest.raises(AudioError):
        check_reference(Waveform(samples, rate))


@pytest.mark.parametrize(("format", "subtype"), [("FLAC", "PCM_16"), ("OGG", "OPUS")])
def test_bombs_stop_while_decoding(format: str, subtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catalogue 17 and 18: kilobytes that hold minutes; no more than one block beyond the limit is decoded."""
    buffer = io.BytesIO()
    with soundfile.SoundFile(buffer, "w", 48000, 1, format=format, subtype=subtype) as sound:
        for _ in range(120):
            sound.write(np.zeros(48000, np.float32))
    decoded = []
    read = soundfile.SoundFile.read

    def counted(self: soundfile.SoundFile, *args: Any, **options: Any) -> np.ndarray:
        block: np.ndarray = read(self, *args, **options)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", counted)
    assert len(buffer.getvalue()) < 120_000
    with pytest.raises(AudioTooLongError, match="more than 30 s"):
        load_audio(buffer.getvalue(), max_seconds=30)
    assert sum(decoded) <= 30 * 48000 + 65_536


def test_decoded_bytes_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts2.audio.loader.MAX_DECODED_BYTES", 4 * 16000)
    with pytest.raises(AudioTooLongError, match="more than 1 s"):
        load_audio(wav_bytes(PCM))
    with pytest.raises(AudioTooLongError):
        load_audio(wav_bytes(PCM), max_seconds=1.1, too_long="cut")


def test_streams_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts2.audio.loader.MAX_STREAM_BYTES", 1000)
    stream = io.BytesIO(wav_bytes(PCM))
    stream.read(1)
    with pytest.raises(AudioTooLongError, match="larger than"):
        load_audio(stream)


def test_long_audio_can_be_cut() -> None:
    whole = load_audio(wav_bytes(PCM))
    cut = load_audio(wav_bytes(PCM), max_seconds=0.5, too_long="cut")
    assert np.array_equal(cut.samples, whole.samples[:8000])
    assert len(load_audio(whole, max_seconds=0.5, too_long="cut").samples) == 8000
    with pytest.raises(AudioTooLongError):
        load_audio(whole, max_seconds=0.5)
    with pytest.raises(AudioError, match="max_seconds"):
        load_audio(whole, max_seconds=0)


def test_a_good_reference_is_returned_as_it_is() -> None:
    waveform = Waveform(SECOND, 16000)
    assert check_reference(waveform) == waveform


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.zeros(32000), "silent"),
        (np.full(32000, 0.4), "silent"),
        (tone(2.0, 16000) * 1e-4, "silent"),
        (tone(2.0, 16000) * 1e30, "scale them"),
        (tone(2.0, 16000) * 32768, "scale them"),
        (tone(0.3, 16000), r"clip\.wav holds 0\.3 s of audio; at least 1 s is needed"),
    ],
    ids=["14 zeros", "14 constant", "14 faint", "13 amplitude 1e30", "13 unscaled integers", "15 too short"],
)
def test_unusable_references(samples: np.ndarray, message: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(float_wav(samples))
    load_audio(path)
    with pytest.raises(AudioError, match=message):
        load_reference(path)


def test_a_long_reference_is_cut_with_a_notice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Catalogue 16."""
    path = tmp_path / "long.wav"
    soundfile.write(path, tone(40, 8000), 8000)
    with caplog.at_level(logging.INFO, "indextts2"):
        assert load_reference(path).duration == 16.0
    assert "only its first 15 s are used" in caplog.text


@settings(deadline=None)
@given(
    st.binary(max_size=400), st.sampled_from([b"", b"RIFF\xff\0\0\0WAVEfmt ", b"fLaC", b"OggS", b"ID3", b"\xff\xfb"])
)
def test_random_bytes_never_give_another_error(data: bytes, magic: bytes) -> None:
    try:
        waveform = load_audio(magic + data)
    except AudioError:
        return
    assert np.isfinite(waveform.samples).all() and len(waveform.samples)


@settings(deadline=None)
@given(st.integers(0, 60), st.binary(min_size=1, max_size=4))
def test_a_changed_wav_header_never_gives_another_error(position: int, patch: bytes) -> None:
    data = bytearray(wav_bytes(PCM))
    data[position : position + len(patch)] = patch
    try:
        waveform = load_audio(bytes(data))
    except AudioError:
        return
    assert np.isfinite(waveform.samples).all() and len(waveform.samples)
