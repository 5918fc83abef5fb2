"""The growth benchmark on a tiny model, and its line on points whose answer is known."""

from __future__ import annotations

import json
import mmap
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.growth import fit, main
from benchmarks.memory import peak_mib, reset_peak
from tests.tiny import recording


def test_every_sweep_gives_a_table_a_line_and_a_picture(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = tmp_path / "voice.wav"
    soundfile.write(voice, recording().samples, 22050)
    arguments = ["--model", str(tiny_model), "--speaker", str(voice), "--codes", "10", "--segments", "4,1"]
    arguments += ["--prompt", "1,2", "--requests", "1,2", "--plot", str(tmp_path / "plots")]
    figures = main([*arguments, "--json", str(tmp_path / "log")])
    output = capsys.readouterr()
    assert json.loads(output.out) == figures
    assert json.loads((tmp_path / "log").read_text()) == figures
    assert "residual" in output.err
    sweeps = figures["sweeps"]
    assert sweeps["segments"]["x"] == [1, 4]
    seconds_of_a_segment, seconds_of_four = sweeps["segments"]["audio_seconds"]
    assert seconds_of_four == pytest.approx(4 * seconds_of_a_segment + 3 * 0.2, abs=0.01)
    assert sweeps["requests"]["audio_seconds"][1] == pytest.approx(2 * seconds_of_a_segment, abs=0.01)
    for name, series in sweeps.items():
        assert all(value > 0 for column in ("seconds", "peak_mib") for value in series[column])
        assert (tmp_path / "plots" / f"growth_{name}.png").stat().st_size > 1000


def test_a_straight_line_has_no_residual() -> None:
    assert fit([1, 2, 4], [3.0, 5.0, 9.0]) == {"at_zero": 1.0, "per_unit": 2.0, "residual": pytest.approx(0, abs=1e-9)}
    assert fit([0, 1, 2], [0.0, 1.0, 4.0])["residual"] == pytest.approx(np.sqrt(2 / 9) / (5 / 3), rel=0.01)
    assert fit([3], [7.0]) == {"at_zero": 7.0, "per_unit": 0.0, "residual": 0.0}


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux can begin a new peak")
def test_a_peak_ends_where_the_next_begins() -> None:
    assert reset_peak()
    before = peak_mib()
    with mmap.mmap(-1, 128 << 20) as large:  # what malloc gives may be resident already
        large[:: mmap.PAGESIZE] = bytes(len(large) // mmap.PAGESIZE)
        assert peak_mib() > before + 100
    assert reset_peak()
    assert peak_mib() < before + 50
