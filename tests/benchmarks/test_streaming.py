"""The streaming benchmark on a tiny model, and its measures on signals whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.likeness import everywhere, jumps, mel_distance
from benchmarks.streaming import main, stalls
from tests.tiny import recording


@pytest.fixture
def voice(tmp_path: Path) -> Path:
    path = tmp_path / "voice.wav"
    soundfile.write(path, recording().samples, 22050)
    return path


def test_it_prints_one_line_of_json(
    tiny_model: Path, voice: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model", str(tiny_model), "--speaker", str(voice), "--runs", "1", "--max-codes", "40"]
    figures = main([*arguments, "--first-frames", "8", "--max-frames", "20", "--json", str(tmp_path / "log")])
    assert json.loads(capsys.readouterr().out) == figures
    assert json.loads((tmp_path / "log").read_text()) == figures
    assert figures["words"] == 20
    assert figures["plan"]["first_frames"] == 8
    seconds = figures["seconds"]
    assert 0 < seconds["low-latency"]["first_audio"] < seconds["low-latency"]["total"]
    assert seconds["exact"]["first_audio"] <= seconds["exact"]["total"]


class Listener:
    """Hears every rendering of a text as the text, and chunks as something else."""

    def __init__(self) -> None:
        self.heard = 0

    def transcribe(self, samples: np.ndarray, sample_rate: int) -> str:
        assert sample_rate == 22050 and samples.dtype == np.float32
        self.heard += 1
        return "One two three four." if self.heard <= 4 else "One two."

    def embed(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        return np.ones(4) / 2


def test_comparing_the_modes(
    tiny_model: Path, voice: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    listener = Listener()
    monkeypatch.setattr("benchmarks.likeness.Transcriber", lambda *_: listener)
    monkeypatch.setattr("benchmarks.likeness.SpeakerJudge", lambda: listener)
    monkeypatch.setattr("benchmarks.likeness.word_error_rate", lambda texts, heard: float(texts != heard) / 2)
    texts = tmp_path / "texts"
    texts.write_text("One two three four.\n\nOne two three four.\n")
    arguments = ["--compare", "--model", str(tiny_model), "--speaker", str(voice), "--texts", str(texts)]
    arguments += ["--whisper", "base", "--similarity", "--max-codes", "40", "--first-frames", "8", "--max-frames", "20"]
    figures = main(arguments)
    assert json.loads(capsys.readouterr().out) == figures
    assert figures["utterances"] == 2
    assert figures["joints"] >= 2
    assert set(figures["jumps"]) == {"exact", "uncut", "low-latency", "anywhere"}
    assert all(distance > 0 for distance in figures["mel_distance_db"].values())
    assert all(0 <= share <= 1 for share in figures["joints_beyond"].values())
    assert figures["word_error"] == {"exact": 0.0, "uncut": 0.0, "low-latency": 0.5}
    assert figures["similarity"]["low-latency to reference"] == figures["similarity"]["low-latency to exact"] == 1.0


def test_judges_belong_to_the_comparison(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--similarity"], ["--speaker", "a", "--speaker", "b"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "--compare" in capsys.readouterr().err


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
    assert smooth.energy_db[0] < 0.1
    assert smooth.click[0] < 2
    assert jumps(clicked, [11025], 22050).click[0] > 5 * smooth.click[0]
    assert jumps(louder, [11025], 22050).energy_db[0] == pytest.approx(20, abs=0.2)
    assert len(jumps(tone, [], 22050).click) == 0


def test_near_silence_has_no_steps() -> None:
    samples = np.concatenate([np.ones(22050), np.full(220, 1e-6), np.zeros(220)]).astype(np.float32)
    assert jumps(samples, [22050 + 220], 22050).energy_db[0] < 0.01


def test_places_keep_off_the_ends() -> None:
    samples = np.zeros(1000, np.float32)
    assert everywhere(samples, 22050) == [220, 440, 660]
    assert len(jumps(samples, everywhere(samples, 22050), 22050).energy_db) == 3
