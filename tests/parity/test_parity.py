"""Parity with the official implementation on name-derived weights: every array of the golden index.

The small model runs with the normal tests, the full one by `make parity-full` (10 GB of memory, minutes).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indextts2 import IndexTTS2
from indextts2.cli.console import table
from tests.conftest import Golden, golden_error, make_checkpoint
from tests.parity.arrays import Arrays, Reference, compute

FLOAT_TOLERANCE = 1e-4
WAVEFORM_TOLERANCE = 1e-3
SCORE_TOLERANCE = 1e-3
# A greedy run may take the other of two codes whose logits are closer than this: another order of summation.
MARGIN = 1e-3


@dataclass(frozen=True)
class Row:
    """Verdict on one array."""

    name: str
    max_difference: float
    relative_l2: float
    tolerance: str
    passed: bool


def judge(name: str, actual: Any, golden: Any) -> Row:
    """Compare one array by the rule of its kind."""
    if "scores" in name and isinstance(golden, dict):
        return _judge_scores(name, np.asarray(actual), golden)
    actual = np.asarray(actual)
    if isinstance(golden, np.ndarray) and np.issubdtype(golden.dtype, np.integer):
        assert actual.shape == golden.shape, f"{name}: shape {actual.shape} instead of {golden.shape}"
        difference = np.abs(actual.astype(np.int64) - golden.astype(np.int64)).max()
        allowed = 1 if name == "wav_int16" else 0
        return Row(name, float(difference), float(difference), f"<= {allowed}", bool(difference <= allowed))
    error = golden_error(actual, golden)
    difference = _max_difference(actual, golden)
    if name.endswith("_score"):
        return Row(name, difference, error, f"abs {SCORE_TOLERANCE}", difference <= SCORE_TOLERANCE)
    tolerance = WAVEFORM_TOLERANCE if name == "wav" else FLOAT_TOLERANCE
    return Row(name, difference, error, f"{tolerance}", error <= tolerance)


def _max_difference(actual: np.ndarray, golden: Any) -> float:
    """Largest difference; of a sliced array over the slices that are stored."""
    if isinstance(golden, np.ndarray):
        return float(np.abs(actual - golden).max())
    axis = int(golden["axis"])
    count = golden["first"].shape[axis]
    ends = (
        np.take(actual, range(count), axis),
        np.take(actual, range(actual.shape[axis] - count, actual.shape[axis]), axis),
    )
    return max(float(np.abs(a - g).max()) for a, g in zip(ends, (golden["first"], golden["last"]), strict=True))


def _judge_scores(name: str, actual: np.ndarray, golden: dict[str, np.ndarray]) -> Row:
    """Processed scores are stored as their finite entries: the same ones must be finite."""
    whole = np.full(tuple(golden["shape"]), -np.inf, dtype=np.float32)
    whole[golden["row"], golden["token"]] = golden["value"]
    finite = np.isfinite(whole)
    if actual.shape != whole.shape or not np.array_equal(np.isfinite(actual), finite):
        return Row(name, float("nan"), float("nan"), "same finite entries", False)
    error = golden_error(actual[finite], whole[finite])
    return Row(
        name, float(np.abs(actual[finite] - whole[finite]).max()), error, f"{FLOAT_TOLERANCE}", error <= FLOAT_TOLERANCE
    )


def judge_all(arrays: Arrays, golden: Golden) -> list[Row]:
    """Every array of the index; one that we do not compute is an error."""
    names = [name for name in golden.index if not name.startswith("_")]
    unknown = sorted(set(names) - set(arrays))
    assert not unknown, f"the index has arrays that the suite does not know: {unknown}"
    close = np.flatnonzero(golden["greedy_rp1_margin"] < MARGIN) if "greedy_rp1_margin" in names else np.array([])
    decided = int(close[0]) if len(close) else None
    rows = []
    for name in names:
        actual, expected = arrays[name], golden[name]
        if name == "greedy_rp1":
            actual, expected = actual[:, :decided], expected[:, :decided]
        rows.append(judge(name, actual, expected))
    return rows


def check_shapes(arrays: Arrays, golden: Golden) -> None:
    shapes = golden.index["_shapes"]
    assert shapes["prompt_frames"] == arrays["ref_mel"].shape[-1]
    assert shapes["target_frames"] == arrays["mel"].shape[-1]
    assert shapes["codes"] == arrays["gpt_latent"].shape[1]


def report(rows: list[Row]) -> str:
    cells = [[r.name, f"{r.max_difference:.2e}", f"{r.relative_l2:.2e}", r.tolerance, "ok" if r.passed else "FAILED"]
             for r in rows]  # fmt: skip
    return table(cells, ["array", "max abs", "relative L2", "tolerance", "verdict"])


def run(reference: Path, size: str, checkpoint: Path) -> list[Row]:
    golden = Golden(reference / f"golden_{size}")
    with IndexTTS2.from_pretrained(checkpoint, device="cpu") as tts:
        arrays = compute(tts, Reference(reference, size))
    check_shapes(arrays, golden)
    return judge_all(arrays, golden)


def test_small(reference: Path, small_checkpoint: Path) -> None:
    rows = run(reference, "small", small_checkpoint)
    assert len(rows) >= 90
    assert all(row.passed for row in rows), "\n" + report([row for row in rows if not row.passed])


@pytest.mark.full
def test_full(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = run(reference, "full", make_checkpoint(reference, "full", tmp_path / "checkpoints"))
    with capsys.disabled():
        print("\n" + report(rows))
    assert all(row.passed for row in rows), "\n" + report([row for row in rows if not row.passed])


def test_an_unknown_array_fails(reference: Path, tmp_path: Path) -> None:
    folder = tmp_path / "golden"
    folder.mkdir()
    (folder / "index.json").write_text(json.dumps({"mystery": {"file": "mystery.npy"}}))
    with pytest.raises(AssertionError, match="mystery"):
        judge_all({"mel": np.zeros(1)}, Golden(folder))


def test_a_wrong_value_fails(reference: Path) -> None:
    golden = Golden(reference / "golden_small")
    mel = golden["mel"]
    assert judge("mel", mel, mel).passed
    assert not judge("mel", mel * (1 + 2e-4), mel).passed
    codes = golden["greedy_rp10"]
    assert not judge("greedy_rp10", codes + (np.arange(codes.size) == 3), codes).passed
