"""The load benchmark on a server with a tiny model, and its comparison of audio."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.serving import Level, Sample, largest_difference, main


def level(*waves: list[int]) -> Level:
    return Level([Sample(pcm=np.array(wave, "<i2").tobytes()) for wave in waves], 1.0)


def test_the_largest_difference_is_in_steps_of_pcm() -> None:
    reference = level([1, 2, -32768], [5])
    assert largest_difference(reference, reference) == 0
    assert largest_difference(level([1, 4, -32768], [5]), reference) == 2
    assert largest_difference(level([1, 2, 32767], [5]), reference) == 65535
    assert largest_difference(level([1, 2], [5]), reference) is None


@pytest.mark.slow
def test_it_prints_one_line_of_json(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", str(tiny_model), "--clients", "1,2", "--requests", "2", "--max-codes", "6", "--soak", "10"]
    figures = main([*arguments, "--lanes", "2", "--max-waiting", "1"])
    assert json.loads(capsys.readouterr().out) == figures
    assert all(not one["errors"] and one["requests"] == 2 for one in figures["levels"].values())
    assert all(0 < one["livez_seconds"]["p50"] <= one["livez_seconds"]["max"] for one in figures["levels"].values())
    assert figures["largest_difference"]["1"] == 0
    assert figures["largest_difference"]["2"] <= 1
    assert figures["soak"]["errors"] == 0
    assert len(figures["soak"]["memory_mib"]) == 11
