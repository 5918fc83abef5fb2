"""The benchmark of the presets on a tiny model: all settings, and measures whose answer is known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.presets import SETTINGS, distance, main
from indextts2.models.gpt.quantised import kernels_work
from indextts2.presets import PRESETS
from tests.tiny import recording


class Listener:
    """Hears the first text right and everybody as the same."""

    def transcribe(self, samples: np.ndarray, sample_rate: int) -> str:
        assert sample_rate == 22050 and len(samples)
        return "One two."

    def embed(self, samples: np.ndarray, sample_rate: int) -> np.ndarray:
        return np.ones(4) / 2


@pytest.mark.skipif(not kernels_work("int8") or not kernels_work("int4"), reason="this torch has no such kernels")
def test_all_settings(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.likeness.Transcriber", lambda *_: Listener())
    monkeypatch.setattr("benchmarks.likeness.SpeakerJudge", lambda: Listener())
    monkeypatch.setattr("benchmarks.presets.word_error_rate", lambda texts, heard: float(texts != heard))
    voice, texts = tmp_path / "voice.wav", tmp_path / "texts"
    soundfile.write(voice, recording().samples, 22050)
    texts.write_text("One two.\n\n")
    arguments = ["--model", str(tiny_model), "--speaker", str(voice), "--texts", str(texts), "--repeats", "1"]
    arguments += ["--max-codes", "12", "--whisper", "base", "--similarity", "--json", str(tmp_path / "log")]
    figures = main(arguments)
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "log").read_text()) == figures
    settings = figures["settings"]
    assert set(settings) == set(SETTINGS) >= set(PRESETS)
    exact = settings["exact"]
    assert (exact["mel_l1"], exact["flow_speed"], exact["total_speed"]) == (0.0, 1.0, 1.0)
    for changed in ("steps / 2", "guidance until 0.3", "bfloat16 flow", "fast"):
        assert settings[changed]["mel_l1"] > 0
    for same in ("int8 decoding", "int4 decoding"):  # the distance is of the flow, whose codes are the exact ones
        assert settings[same]["mel_l1"] == 0
    assert all(row["word_error"] == 0.0 and row["similarity"] == 1.0 for row in settings.values())
    for kind, least in (("int8", 0.99), ("int4", 0.8)):
        rounding = figures["rounding"][kind]
        assert rounding["steps"] > 0 and least < rounding["cosine_least"] <= rounding["cosine_mean"] <= 1.0


def test_distances() -> None:
    exact = torch.ones(1, 80, 5)
    assert distance(exact, exact) == (0.0, 0.0)
    assert distance(exact + 0.5, exact) == pytest.approx((0.5, 0.5))


def test_one_repeat_at_least(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--repeats", "0"])
    assert "--repeats" in capsys.readouterr().err
