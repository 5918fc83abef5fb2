"""The benchmark of GPUs: its arithmetic, its tables, and its measurements on a tiny model on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks import gpu
from indextts2 import IndexTTS2
from indextts2.models.gpt.bursts import Bursts
from indextts2.models.gpt.unified_voice import UnifiedVoice
from tests.tiny import recording


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(SystemExit, match="CUDA"):
        gpu.main([])


def test_percentiles() -> None:
    values = [5.0, 1.0, 4.0, 2.0, 3.0]
    assert [gpu.percentile(values, share) for share in (1, 50, 60, 61, 95, 100)] == [1.0, 3.0, 3.0, 4.0, 5.0, 5.0]
    assert gpu.percentile([7.0], 50) == 7.0


def test_it_measures_both_versions(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tts = IndexTTS2.from_pretrained(tiny_model, device="cpu")
    bursts = Bursts(tts.models.gpt)
    monkeypatch.setattr(UnifiedVoice, "bursts", bursts)
    voice = tts.voice(recording())
    config = gpu.options(gpu._parse(["--seconds", "0.5", "--num-beams", "1"]), tts)
    graphs = gpu.measure(tts, voice, config, [1, 2], runs=1)
    slots = bursts._batches.pop(1).buffers.slots
    assert slots == 2
    with gpu.plain():
        plain = gpu.measure(tts, voice, config, [1, 2], runs=1)
    assert not bursts._batches and UnifiedVoice.bursts is bursts
    for found in (graphs, plain):
        assert found["one_stream"]["audio_seconds"] == pytest.approx(0.5, abs=0.05)
        assert found["one_stream"]["rtf"] > 0 and found["one_stream"]["first_audio"] > 0
        assert list(found["streams"]) == ["1", "2"]
        assert all(row["audio_per_second"] > 0 for row in found["streams"].values())


def test_the_report_holds_the_figures_and_the_aims() -> None:
    def version(rtf: float, speeds: dict[str, float]) -> dict[str, Any]:
        rows = {n: {"audio_per_second": s, "first_audio_p95": 0.25, "memory_mib": 10.0} for n, s in speeds.items()}
        return {"one_stream": {"rtf": rtf, "first_audio": 0.125, "memory_mib": 5.0}, "streams": rows}

    figures = {"graphs": version(0.04, {"1": 25.0, "16": 175.0}), "plain": version(0.4, {"1": 2.5, "16": 5.0})}
    text = gpu.report(figures)
    assert all(value in text for value in ("0.040", "0.400", "175.0", "0.125", "7.0", "2.5"))
    assert gpu.judged(figures)[2] == ["16 streams over one", ">= 6.0", "7.0"]
    del figures["graphs"]["streams"]["16"]
    assert len(gpu.judged(figures)) == 2
