"""The streaming benchmark on a tiny model, and its measures on signals whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.streaming import jumps, main, mel_distance, stalls
from tests.tiny import recording


def test_it_prints_one_line_of_json(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, recording().samples, 22050)
    arguments = ["--model", str(tiny_model), "--speaker", str(voice), "--runs", "1", "--max-codes", "40"]
    figures = main([*arguments, "--first-frames", "8", "--max-frames", "20", "--json", str(tmp_path / "log")])
    assert json.loads(capsys.readouterr().out) == figures
    assert json.loads((tmp_path / "log").read_text()) == figures
    assert figures["words"] == 20
    assert figures["plan"]["first_frames"] == 8
    seconds = figures["seconds"]
    assert 0 < seconds["low-latency"]["first_audio"] < seconds["low-latency"]["total"]
    assert seconds["exact"]["first_audio"] <= seconds["exact"]["total"]
    assert figures["joints"] > 0
    assert set(figures["jumps"]) == {"exact", "uncut", "low-latency"}
    assert all(distance > 0 for distance in figures["mel_distance_db"].values())


def test_stalls_are_the_seconds_a_listener_waits() -> None:
    assert stalls([1.0, 1.5, 2.0], [1.0, 1.0, 1.0]) == 0.0
    assert stalls([1.0, 2.5, 3.0], [1.0, 1.0, 1.0]) == pytest.approx(0.5)
    assert stalls([1.0, 4.0, 9.0], [1.0, 1.0, 1.0]) == pytest.approx(2.0 + 4.0)


def test_a_mel_that_is_one_neper_louder_is_nine_decibels_away() -> None:
    mel = np.zeros((80, 10), np.float32)
    assert mel_distance(mel, mel) == 0.0
    assert mel_distance(mel, mel + 1) == pytest.approx(8.686, abs=1e-3)


def test_jumps_see_a_click_and_a_step_of_loudness() -> None:
    time = np.arange(22050) / 22050
    tone = np.sin(2 * np.pi * 200 * time).astype(np.float32) * 0.1
    smooth = jumps(tone, [11025], 22050)
    clicked = tone.copy()
    clicked[11025] += 0.1
    louder = tone.copy()
    louder[11025:] *= 10
    assert smooth["energy_db"] < 0.1
    assert smooth["click"] < 2
    assert jumps(clicked, [11025], 22050)["click"] > 5 * smooth["click"]
    assert jumps(louder, [11025], 22050)["energy_db"] == pytest.approx(20, abs=0.2)
    assert jumps(tone, [], 22050) == {"energy_db": 0.0, "click": 0.0}
