"""`infer --stream` and `--play`, with a stand-in for sounddevice and without one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts2.audio.writer import write_audio
from indextts2.cli.main import main
from tests.audio.test_playback import Device
from tests.tiny import recording

pytestmark = pytest.mark.usefixtures("one_thread")

LOW_LATENCY = ["--stream", "low-latency"]


@pytest.fixture
def infer(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command without output, run in an empty folder."""
    speaker = tmp_path / "speaker.wav"
    write_audio(speaker, recording().samples, recording().sample_rate)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    options = ["--max-codes", "30", "--num-beams", "1", "--seed", "1", "--cpu"]
    return ["infer", "--model", str(tiny_model), "-s", str(speaker), "-t", "One is here. Two is here.", *options]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


@pytest.fixture(params=["no package", "no sound card"])
def no_sound(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    device.fail_at = "open"
    if request.param == "no package":
        monkeypatch.setitem(sys.modules, "sounddevice", None)


def written() -> list[str]:
    return sorted(path.name for path in Path().iterdir())


def played(device: Device) -> np.ndarray:
    return np.concatenate([data[:, 0] for name, data in device.events if name == "write"])


def test_stream_alone_plays(infer: list[str], device: Device, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*infer, *LOW_LATENCY, "--json"]) == 0
    assert written() == []
    assert device.names[-2:] == ["stop", "close"]
    printed = capsys.readouterr()
    assert json.loads(printed.out)["output"] is None
    assert "played: " in printed.err
    assert main([*infer, *LOW_LATENCY, "--subtype", "FLOAT"]) == 0, "a sample format asks for a file"
    assert written() == ["output.wav"]
    assert np.array_equal(played(device), soundfile.read("output.wav", dtype="float32")[0])


def test_an_output_alone_is_not_played(infer: list[str], device: Device) -> None:
    assert main([*infer, *LOW_LATENCY, "-o", "speech.wav"]) == 0
    assert main([*infer, "-o", "speech.flac"]) == 0
    assert device.names == []
    assert written() == ["speech.flac", "speech.wav"]


@pytest.mark.parametrize("stream", [[], LOW_LATENCY])
def test_play_also_writes(infer: list[str], stream: list[str], device: Device) -> None:
    assert main([*infer, *stream, "--play"]) == 0
    assert written() == ["output.wav"]
    assert len(played(device)) == soundfile.info("output.wav").frames


@pytest.mark.usefixtures("no_sound")
@pytest.mark.parametrize("options", [["--stream"], ["--stream", "--play"], ["--play"]])
def test_without_sound_the_default_file_is_written(
    infer: list[str], options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*infer, *options]) == 0
    assert written() == ["output.wav"]
    assert soundfile.info("output.wav").frames > 0
    lines = capsys.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("not played, only written to output.wav: ")]) == 1
    assert lines[-1].startswith("output.wav: ")


@pytest.mark.usefixtures("no_sound")
def test_without_sound_standard_output_goes_on(infer: list[str], capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    assert main([*infer, "--stream", "--play", "-o", "-"]) == 0
    printed = capfdbinary.readouterr()
    assert printed.out.startswith(b"RIFF") and len(printed.out) > 1000
    assert printed.err.count(b"not played, only written to standard output: ") == 1
