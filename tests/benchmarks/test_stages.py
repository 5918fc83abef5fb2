"""The stage benchmark: every plain version computes what our module does, and the report says what was measured."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import roofline, stage_list
from benchmarks.costs import Cost
from benchmarks.roofline import Machine
from benchmarks.stage_list import STAGES, Bench, Stage
from benchmarks.stages import alternate, main, summarise
from tests.conftest import relative_l2


@pytest.fixture(scope="module")
def bench() -> Bench:
    return Bench("small", calls=2)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_list, "SECONDS", 1.0)
    monkeypatch.setattr(stage_list, "VOCODER_SECONDS", 0.25)
    monkeypatch.setattr(roofline, "MATRIX_SIZE", 128)
    monkeypatch.setattr(roofline, "READ_NUMBERS", 1 << 20)


@pytest.mark.parametrize("name", STAGES)
@torch.inference_mode()
def test_the_plain_version_computes_the_same(bench: Bench, name: str) -> None:
    stage = STAGES[name](bench)
    ours, plain = stage.ours(), stage.plain()
    if isinstance(ours, list):
        assert len(ours) >= stage.amount
        assert ours == plain
    else:
        assert isinstance(plain, torch.Tensor)
        assert float(ours.std()) > 1e-3
        assert relative_l2(plain, ours) < 1e-4


def test_it_prints_one_line_of_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--size", "small", "--stage", "codec", "decode-1", "--repeats", "1", "--json", str(tmp_path / "log")]
    figures = main(arguments)
    assert json.loads(capsys.readouterr().out) == figures
    assert json.loads((tmp_path / "log").read_text()) == figures
    assert figures["size"] == "small"
    codec, decode = figures["stages"]
    assert (codec["stage"], codec["unit"]) == ("codec", "ref s")
    assert (decode["stage"], decode["unit"]) == ("decode-1", "step")
    assert codec["floor_seconds"] == pytest.approx(codec["gflop"] / codec["gflop_per_second"], rel=0.01)
    for stage in figures["stages"]:
        assert stage["over_floor"] == pytest.approx(stage["seconds"] / stage["floor_seconds"], rel=0.01)
        assert stage["plain_seconds"] > 0


def test_calls_take_turns_and_the_best_of_each_counts() -> None:
    order: list[str] = []
    clock = itertools.accumulate([0, 4, 0, 5, 0, 3, 0, 6]).__next__
    taken = alternate([lambda: order.append("ours"), lambda: order.append("plain")], 2, clock)
    assert order == ["ours", "plain"] * 3
    assert taken == [3, 5]


def test_figures_are_per_unit_of_work() -> None:
    stage = Stage("s", 2.0, Cost(flop=4e9, bytes=1e9), ours=list, plain=list)
    result = summarise("one", stage, [2.0, 4.0], Machine(4e9, 2e9))
    assert result == {
        "stage": "one", "unit": "s", "gflop_per_second": 4.0, "gb_per_second": 2.0, "seconds": 1.0, "gflop": 2.0,
        "gb": 0.5, "floor_seconds": 0.5, "over_floor": 2.0, "plain_seconds": 2.0, "plain_over_ours": 2.0,
    }  # fmt: skip
    assert "plain_seconds" not in summarise("one", stage, [1.0], Machine(4e9, 2e9))


def test_impossible_options_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["--repeats", "0"], "--repeats must lie in 1..30"),
        (["--clock", "cpu", "--threads", "2"], "use it with --threads 1"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert message in capsys.readouterr().err
