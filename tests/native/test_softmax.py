"""The C kernel of the softmax against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch

from indextts2.native import library, softmax

pytestmark = pytest.mark.skipif(library.native().library is None, reason=library.native().status)


@pytest.fixture
def instruction_set(instruction_set: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variants, also those that are not chosen because PyTorch may be faster."""
    monkeypatch.setattr(softmax, "is_fast", lambda: True)


# Fewer columns than a vector, with and without remainders of one and of four; whole pieces of rows and parts of one.
@pytest.mark.parametrize("columns", [1, 3, 16, 37, 64, 203, 1000])
@pytest.mark.parametrize("rows", [1, 16, 33])
@pytest.mark.parametrize("spread", [0.1, 5.0, 100.0])
def test_equals_pytorch(rows: int, columns: int, spread: float, instruction_set: None):
    torch.manual_seed(columns)
    x = spread * torch.randn(2, rows, columns)
    wanted = x.double().softmax(dim=-1)
    assert softmax.softmax_(x) is x
    torch.testing.assert_close(x, wanted.float(), rtol=2e-5, atol=1e-7)


def test_numbers_at_the_ends_of_the_range(instruction_set: None):
    infinity = float("inf")
    x = torch.tensor(
        [
            [3e38, 0.0, -3e38, -infinity, 1e-45],
            [-90.0, 0.0, -80.0, -1.0, -infinity],
            [0.0, float("nan"), 0.0, 0.0, 0.0],
            [infinity, 0.0, 0.0, 0.0, 0.0],
            [-infinity] * 5,
        ]
    )
    wanted = x.softmax(dim=-1)
    torch.testing.assert_close(softmax.softmax_(x), wanted, rtol=1e-6, atol=1e-37, equal_nan=True)


def test_same_bits_on_any_number_of_threads(instruction_set: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(softmax, "NUMBERS_PER_THREAD", 1)
    x = torch.randn(50, 70)
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            results.append(softmax.softmax_(x.clone()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("x", [torch.randn(3, 50).double(), torch.randn(0, 50)], ids=["float64", "empty"])
def test_what_the_kernel_does_not_compute(x: torch.Tensor):
    wanted = x.softmax(dim=-1)
    assert torch.equal(softmax.softmax_(x), wanted)
