"""Writing files: the integer rule, formats, tags, and files that appear complete or not at all."""

from __future__ import annotations

import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from indextts2.audio.loader import load_audio
from indextts2.audio.writer import FORMATS, PROVENANCE, encode_audio, pcm16, write_audio
from indextts2.errors import AudioError
from tests.audio.signals import tone

SAMPLES = tone(1.5)


def test_pcm16_truncates_toward_zero_and_clamps() -> None:
    x = np.array([0, 1, -1, 2, -2, 0.99999, 1.5 / 32767, -1.5 / 32767, 0.9 / 32767], np.float32)
    assert pcm16(x).tolist() == [0, 32767, -32767, 32767, -32767, 32766, 1, -1, 0]
    assert pcm16(x).dtype == np.int16


@settings(deadline=None)
@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(-4, 4, width=32)))
def test_pcm16_follows_the_formula(x: np.ndarray) -> None:
    expected = [int(max(-32767.0, min(32767.0, float(np.float32(32767) * v)))) for v in x]
    assert pcm16(x).tolist() == expected


@pytest.mark.parametrize("extension", ["wav", "flac"])
def test_16_bit_files_hold_exactly_pcm16(extension: str, tmp_path: Path) -> None:
    path = write_audio(tmp_path / f"new/folder/clip.{extension}", SAMPLES, 22050)
    values, rate = soundfile.read(path, dtype="int16")
    assert rate == 22050 and np.array_equal(values, pcm16(SAMPLES))


def test_float_wav_is_exact_beyond_full_scale(tmp_path: Path) -> None:
    path = write_audio(tmp_path / "clip.wav", SAMPLES * 3, 22050, subtype="FLOAT")
    assert np.array_equal(load_audio(path).samples, SAMPLES * 3)


@pytest.mark.parametrize(("extension", "subtype"), [("wav", "PCM_24"), ("wav", "PCM_32"), ("flac", "PCM_24")])
def test_wider_integers(extension: str, subtype: str, tmp_path: Path) -> None:
    path = write_audio(tmp_path / f"clip.{extension}", SAMPLES, 22050, subtype=subtype)
    assert soundfile.info(path).subtype == subtype
    assert np.abs(load_audio(path).samples - SAMPLES).max() < 1e-6


@pytest.mark.parametrize(
    ("extension", "subtype", "rate"),
    [("ogg", "VORBIS", 22050), ("opus", "OPUS", 24000), ("ogg", "OPUS", 24000), ("mp3", "MPEG_LAYER_III", 22050)],
)
def test_lossy_round_trips(extension: str, subtype: str, rate: int, tmp_path: Path) -> None:
    path = write_audio(tmp_path / f"clip.{extension}", SAMPLES, 22050, subtype=subtype)
    assert soundfile.info(path).subtype == subtype
    waveform = load_audio(path)
    assert waveform.sample_rate == rate
    assert waveform.duration == pytest.approx(1.5, abs=0.001)
    assert np.corrcoef(waveform.samples, tone(1.5, rate))[0, 1] > 0.9


@pytest.mark.parametrize(("extension", "rate", "expected"), [("mp3", 96000, 48000), ("opus", 44100, 48000)])
def test_rates_that_a_codec_does_not_know_are_resampled(extension: str, rate: int, expected: int) -> None:
    waveform = load_audio(encode_audio(tone(1, rate), rate, extension))
    assert waveform.sample_rate == expected and waveform.duration == pytest.approx(1, abs=0.001)


@pytest.mark.parametrize("extension", ["pcm", "raw"])
def test_raw_pcm_is_little_endian_without_header(extension: str) -> None:
    assert encode_audio(SAMPLES, 22050, extension) == pcm16(SAMPLES).astype("<i2").tobytes()
    assert encode_audio(SAMPLES, 22050, extension, subtype="float") == SAMPLES.astype("<f4").tobytes()


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3"])
def test_tags_survive(extension: str, tmp_path: Path) -> None:
    metadata = {"title": "A line", "comment": "said\nsoftly", "seed": "17"}
    path = write_audio(tmp_path / f"clip.{extension}", SAMPLES, 22050, metadata=metadata)
    with soundfile.SoundFile(path) as sound:
        assert sound.title == "A line"
        assert sound.comment == f"{PROVENANCE}; said softly; seed=17"
        # LAME writes its own name.
        assert extension == "mp3" or sound.software.startswith("indextts2")


@pytest.mark.parametrize("extension", ["wav", "flac", "ogg", "opus", "mp3"])
def test_files_are_marked_as_synthetic_unless_told(extension: str) -> None:
    with soundfile.SoundFile(io.BytesIO(encode_audio(SAMPLES, 22050, extension))) as sound:
        assert sound.comment == PROVENANCE
    with soundfile.SoundFile(io.BytesIO(encode_audio(SAMPLES, 22050, extension, synthetic=False))) as sound:
        assert sound.comment == ""


def test_a_lone_surrogate_in_a_tag_is_no_error() -> None:
    data = encode_audio(SAMPLES, 22050, "flac", metadata={"title": "a\ud800b\0c 中文"})
    with soundfile.SoundFile(io.BytesIO(data)) as sound:
        assert sound.title == "a b c 中文"


def test_long_vorbis_is_written_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    write = soundfile.SoundFile.write

    def counted(self: soundfile.SoundFile, data: np.ndarray) -> None:
        sizes.append(len(data))
        write(self, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", counted)
    data = encode_audio(np.zeros(200_000, np.float32), 22050, "ogg")
    assert sizes == [65536, 65536, 65536, 200_000 - 3 * 65536]
    assert len(load_audio(data).samples) == 200_000


@pytest.mark.parametrize("extension", sorted(FORMATS))
def test_no_samples_can_be_written(extension: str) -> None:
    encode_audio(np.zeros(0, np.float32), 22050, extension)


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (np.array([0, np.nan], np.float32), "1 samples are NaN"),
        (np.array([0, np.inf], np.float32), "infinite"),
        (np.zeros((1, 5), np.float32), "one-dimensional"),
        (np.zeros(5, np.int16), "float array"),
    ],
)
def test_bad_samples_leave_no_file(samples: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=message):
        write_audio(tmp_path / "clip.wav", samples, 22050)
    assert not list(tmp_path.iterdir())


def test_unknown_formats_name_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"'\.aac' cannot be written; choose one of wav, flac"):
        write_audio(tmp_path / "clip.aac", SAMPLES, 22050)
    with pytest.raises(AudioError, match="choose one of PCM_16, PCM_24"):
        encode_audio(SAMPLES, 22050, "flac", subtype="FLOAT")
    with pytest.raises(AudioError, match="0 Hz"):
        encode_audio(SAMPLES, 0, "wav")


def test_an_existing_file_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_audio(tmp_path / "clip.wav", SAMPLES, 22050)
    before = path.read_bytes()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(soundfile.SoundFile, "write", full)
    with pytest.raises(AudioError, match="No space left"):
        write_audio(path, SAMPLES[:100], 22050)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_targets_that_cannot_be_files(tmp_path: Path) -> None:
    (tmp_path / "folder.wav").mkdir()
    with pytest.raises(AudioError, match="directory"):
        write_audio(tmp_path / "folder.wav", SAMPLES, 22050)
    (tmp_path / "file").write_text("")
    with pytest.raises(AudioError, match="cannot be written"):
        write_audio(tmp_path / "file" / "clip.wav", SAMPLES, 22050)


def test_a_link_is_kept(tmp_path: Path) -> None:
    link = tmp_path / "link.wav"
    link.symlink_to(tmp_path / "real.wav")
    assert write_audio(link, SAMPLES, 22050) == link
    assert link.is_symlink() and len(load_audio(tmp_path / "real.wav").samples) == len(SAMPLES)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_is_written_to(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    received: list[bytes] = []
    thread = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    thread.start()
    write_audio(pipe, SAMPLES, 22050)
    thread.join()
    assert len(load_audio(received[0]).samples) == len(SAMPLES)
