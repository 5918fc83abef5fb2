"""Audio written while it is made: growing files, pipes, and encoded chunks."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts2.audio.loader import load_audio
from indextts2.audio.writer import PROVENANCE, StreamEncoder, StreamingWavWriter, pcm16
from indextts2.errors import AudioError
from tests.audio.signals import tone

SAMPLES = tone(3.0)
CHUNKS = np.array_split(SAMPLES, 7)


def test_a_growing_file_can_be_read_at_any_time_and_is_sound_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "clip.wav"
    with StreamingWavWriter(path, 22050, metadata={"title": "Live"}) as writer:
        for index, chunk in enumerate(CHUNKS):
            writer.write(chunk)
            if index == 3:
                assert len(load_audio(path).samples) == writer.samples_written == sum(map(len, CHUNKS[:4]))
    data = path.read_bytes()
    assert struct.unpack("<I", data[4:8])[0] == len(data) - 8
    values, rate = soundfile.read(path, dtype="int16")
    assert rate == 22050 and np.array_equal(values, pcm16(SAMPLES))
    with soundfile.SoundFile(path) as sound:
        assert (sound.title, sound.comment) == ("Live", PROVENANCE)


def test_float_stream(tmp_path: Path) -> None:
    with StreamingWavWriter(tmp_path / "clip.wav", 24000, subtype="FLOAT", synthetic=False) as writer:
        writer.write(SAMPLES)
    waveform = load_audio(tmp_path / "clip.wav")
    assert waveform.sample_rate == 24000 and np.array_equal(waveform.samples, SAMPLES)


def test_a_pipe_gets_open_sizes() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as target, StreamingWavWriter(target, 22050) as writer:
        writer.write(SAMPLES[:5000])
    with os.fdopen(reading, "rb") as source:
        data = source.read()
    assert data[4:8] == b"\xff\xff\xff\xff"
    at = data.index(b"data")
    assert data[at + 4 : at + 8] == b"\xff\xff\xff\xff"
    assert np.array_equal(load_audio(data).samples, (pcm16(SAMPLES[:5000]) / np.float32(32768)))


def test_a_stream_of_the_caller_stays_open_and_keeps_what_was_before() -> None:
    target = io.BytesIO()
    target.write(b"before")
    with StreamingWavWriter(target, 22050) as writer:
        writer.write(SAMPLES)
    assert not target.closed and target.getvalue().startswith(b"beforeRIFF")
    target.seek(6)
    assert len(load_audio(target).samples) == len(SAMPLES)


def test_what_was_written_before_an_error_is_sound(tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    with pytest.raises(RuntimeError), StreamingWavWriter(path, 22050) as writer:
        writer.write(CHUNKS[0])
        raise RuntimeError
    assert len(load_audio(path).samples) == len(CHUNKS[0])


def test_errors_of_streams(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="cannot be written"):
        StreamingWavWriter(tmp_path / "file" / "clip.wav", 22050)
    with pytest.raises(AudioError, match="PCM_16 or FLOAT"):
        StreamingWavWriter(tmp_path / "a.wav", 22050, subtype="PCM_24")
    writer = StreamingWavWriter(tmp_path / "a.wav", 22050)
    with pytest.raises(AudioError, match="NaN"):
        writer.write(np.array([np.nan], np.float32))
    writer.close()
    writer.close()
    with pytest.raises(AudioError, match="closed"):
        writer.write(SAMPLES)


def test_a_reader_that_left_is_told_as_it_is() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb", buffering=0) as target:
        writer = StreamingWavWriter(target, 22050)
        os.close(reading)
        with pytest.raises(BrokenPipeError):
            writer.write(SAMPLES)


@pytest.mark.parametrize(
    ("name", "rate", "media_type"),
    [
        ("wav", 22050, "audio/wav"),
        ("flac", 22050, "audio/flac"),
        ("ogg", 22050, "audio/ogg"),
        ("opus", 24000, "audio/opus"),
        ("mp3", 22050, "audio/mpeg"),
    ],
)
@pytest.mark.parametrize("title", ["", "a title longer than thirty characters, for a tag of the second version"])
def test_encoded_chunks_join_to_a_stream(name: str, rate: int, media_type: str, title: str) -> None:
    encoder = StreamEncoder(name, 22050, metadata={"title": title} if title else None)
    assert encoder.media_type == media_type and encoder.encoded_sample_rate == rate
    parts = [encoder.encode(chunk) for chunk in CHUNKS] + [encoder.finish()]
    assert sum(map(bool, parts)) > 2, "nothing came before the end"
    data = b"".join(parts)
    waveform = load_audio(data)
    assert waveform.sample_rate == rate
    # A stream of MP3 cannot say how much of its first and last frames is padding.
    assert -0.001 <= waveform.duration - 3.0 < (0.1 if name == "mp3" else 0.001)
    if name != "mp3":
        assert np.corrcoef(waveform.samples, tone(3.0, rate))[0, 1] > 0.9
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        assert sound.comment == PROVENANCE
        assert sound.title == title


def test_raw_chunks_are_bare() -> None:
    encoder = StreamEncoder("pcm", 22050)
    data = b"".join([encoder.encode(chunk) for chunk in CHUNKS] + [encoder.finish()])
    assert data == pcm16(SAMPLES).astype("<i2").tobytes()


@pytest.mark.parametrize("name", ["wav", "flac", "ogg", "opus", "mp3", "pcm"])
def test_a_stream_without_samples_ends_without_error(name: str) -> None:
    encoder = StreamEncoder(name, 22050)
    assert encoder.encode(np.zeros(0, np.float32)) is not None
    encoder.finish()
