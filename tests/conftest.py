"""Shared fixtures: where the reference lies, the small checkpoint made from it, and its golden arrays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = Path(os.environ.get("INDEXTTS2_REFERENCE", ROOT.parent / "shared" / "reference"))


class Golden:
    """Golden arrays of one size, read lazily. Sliced arrays come as dicts of `first`, `last`, `mean`, `std`, `l2`, …"""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = json.loads((folder / "index.json").read_text())

    def __getitem__(self, name: str) -> np.ndarray | dict[str, np.ndarray]:
        file = self.folder / self.index[name]["file"]
        if file.suffix == ".npy":
            return np.load(file)
        with np.load(file) as data:
            return {key: data[key] for key in data.files}


def relative_l2(actual: object, expected: object) -> float:
    """||actual - expected|| / ||expected|| in float64; shapes must be equal and all values finite."""
    a, e = np.asarray(actual, dtype=np.float64), np.asarray(expected, dtype=np.float64)
    assert a.shape == e.shape, f"shape {a.shape} instead of {e.shape}"
    assert np.isfinite(a).all(), "NaN or infinity in the result"
    return float(np.linalg.norm(a - e) / max(np.linalg.norm(e), 1e-30))


def golden_error(actual: object, golden: np.ndarray | dict[str, np.ndarray]) -> float:
    """Relative L2 error against a whole array, or the larger one of the two slices of a sliced array."""
    if isinstance(golden, np.ndarray):
        return relative_l2(actual, golden)
    a = np.asarray(actual)
    assert list(a.shape) == [int(n) for n in golden["shape"]], f"shape {a.shape} instead of {golden['shape']}"
    axis = int(golden["axis"])
    n = golden["first"].shape[axis]
    first = np.take(a, range(n), axis=axis)
    last = np.take(a, range(a.shape[axis] - golden["last"].shape[axis], a.shape[axis]), axis=axis)
    norm = abs(float(np.linalg.norm(a.astype(np.float64))) / float(golden["l2"]) - 1)
    return max(relative_l2(first, golden["first"]), relative_l2(last, golden["last"]), norm)


@pytest.fixture(scope="session")
def reference() -> Path:
    if not (REFERENCE / "make_checkpoint.py").exists():
        if os.environ.get("CI"):
            pytest.fail(f"CI must have the reference directory; {REFERENCE} does not hold it")
        pytest.skip(f"reference directory {REFERENCE} is absent (set INDEXTTS2_REFERENCE)")
    return REFERENCE


@pytest.fixture(scope="session")
def golden(reference: Path) -> Golden:
    return Golden(reference / "golden_small")


def make_checkpoint(reference: Path, size: str, target: Path) -> Path:
    """Write the name-derived checkpoint and say in its config which hidden state holds the semantic features."""
    command = [sys.executable, str(reference / "make_checkpoint.py"), size, str(target)]
    subprocess.run(command, check=True, capture_output=True)
    plan = json.loads((reference / "inputs" / "plan.json").read_text())
    with (target / "config.yaml").open("a") as file:
        file.write(f"\nsemantic_output_layer: {plan['semantic_output_layer'][size]}\n")
    return target


@pytest.fixture(scope="session")
def small_checkpoint(reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directory in the official layout with the small name-derived weights (250 MB, ten seconds)."""
    return make_checkpoint(reference, "small", tmp_path_factory.mktemp("small") / "checkpoints")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Model directory with tiny random weights, for tests in which the sound does not matter (milliseconds)."""
    from tests.tiny import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Networks this small are slower with several threads, much slower on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
