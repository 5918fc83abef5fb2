"""Playback through a stand-in for sounddevice that records what it is told."""

from __future__ import annotations

import builtins
import sys
import types
from typing import Any

import numpy as np
import pytest

from indextts2.audio.playback import Player, play
from indextts2.errors import AudioError, MissingExtraError
from indextts2.types import Waveform
from tests.audio.signals import tone


class Device(types.ModuleType):
    """The part of sounddevice that is used: an output stream and its error."""

    class PortAudioError(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("sounddevice")
        self.events: list[Any] = []
        self.fail_at = ""
        self.OutputStream = self._open

    def _open(self, **options: Any) -> Device:
        return self._record("open", options)

    def start(self) -> None:
        self._record("start")

    def write(self, data: np.ndarray) -> None:
        self._record("write", data)

    def stop(self) -> None:
        self._record("stop")

    def abort(self) -> None:
        self._record("abort")

    def close(self) -> None:
        self._record("close")

    def _record(self, what: str, value: Any = None) -> Device:
        if what == self.fail_at:
            raise self.PortAudioError("Error querying device -1")
        self.events.append((what, value))
        return self

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.events]


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    fake = Device()
    monkeypatch.setitem(sys.modules, "sounddevice", fake)
    return fake


def test_play_hands_over_all_samples_and_waits(device: Device) -> None:
    samples = tone(0.2)
    play(Waveform(samples, 22050))
    assert device.names == ["open", "start", "write", "stop", "close"]
    assert device.events[0][1] == {"samplerate": 22050, "channels": 1, "dtype": "float32"}
    written = device.events[2][1]
    assert written.dtype == np.float32 and np.array_equal(written[:, 0], samples)


def test_chunks_play_on_one_stream_and_are_clipped(device: Device) -> None:
    with Player(24000) as player:
        player.write(np.array([0.5, 2.0], np.float32))
        player.write(np.array([-3.0], np.float32))
    assert device.names == ["open", "start", "write", "write", "stop", "close"]
    assert device.events[2][1].tolist() == [[0.5], [1.0]]
    assert device.events[3][1].tolist() == [[-1.0]]


def test_an_error_stops_at_once(device: Device) -> None:
    with pytest.raises(RuntimeError), Player(24000):
        raise RuntimeError
    assert device.names == ["open", "start", "abort", "close"]


def test_a_closed_player_takes_nothing(device: Device) -> None:
    player = Player(24000)
    player.close()
    player.close()
    assert device.names == ["open", "start", "stop", "close"]
    with pytest.raises(AudioError, match="closed"):
        player.write(tone(0.1))


@pytest.mark.parametrize("step", ["open", "start", "write", "stop"])
def test_errors_of_the_device(device: Device, step: str) -> None:
    device.fail_at = step
    with pytest.raises(AudioError, match=r"cannot play 22050 Hz mono: Error querying device -1; connect"):
        play(Waveform(tone(0.1), 22050))
    assert (step == "open") == ("close" not in device.names)


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(MissingExtraError, match=r"indextts2\[playback\]"):
        Player(22050)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    importer = builtins.__import__

    def without_portaudio(name: str, *args: Any) -> Any:
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return importer(name, *args)

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(builtins, "__import__", without_portaudio)
    with pytest.raises(AudioError, match="libportaudio2"):
        Player(22050)
