"""The C kernel of products of a few rows against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from indextts2.models.dense import linear
from indextts2.native import library, product

pytestmark = pytest.mark.skipif(library.native().library is None, reason=library.native().status)


def tensors(rows: int, inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + 10 * inputs + 1000 * outputs)
    return torch.randn(rows, inputs), torch.randn(inputs, outputs), torch.randn(outputs)


# Inputs and outputs with and without remainders, fewer than a vector or a step holds, more rows than one kernel takes.
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 6, 7, 8, 9, 23])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (8, 16), (40, 33), (203, 517)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_pytorch(rows: int, shape: tuple[int, int], with_bias: bool, instruction_set: None):
    x, weight, bias = tensors(rows, *shape)
    actual = product.multiply_rows(x, weight, bias if with_bias else None)
    wanted = x.double() @ weight.double() + (bias.double() if with_bias else 0)
    assert actual.dtype == torch.float32
    assert (actual - wanted).norm() < 1e-6 * wanted.norm().clamp(min=1)


def test_same_bits_whatever_the_other_rows_and_the_threads(instruction_set: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(product, "WEIGHTS_PER_THREAD", 1)
    x, weight, bias = tensors(21, 203, 517)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = torch.cat([product.multiply_rows(row[None], weight, bias) for row in x])
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            for rows in range(1, len(x) + 1):
                assert torch.equal(product.multiply_rows(x[:rows], weight, bias), alone[:rows])
    finally:
        torch.set_num_threads(threads)


def test_any_leading_dimensions_and_gaps():
    x, weight, bias = tensors(6, 40, 33)
    wanted = product.multiply_rows(x, weight, bias)
    assert torch.equal(product.multiply_rows(x.view(2, 3, 40), weight, bias), wanted.view(2, 3, 33))
    assert torch.equal(product.multiply_rows(x.t().contiguous().t(), weight, bias), wanted)
    assert product.multiply_rows(x[:0], weight, bias).shape == (0, 33)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows that `dense.linear` leaves to the kernel."""
    if not library.loaded().product_is_fast():
        pytest.skip("PyTorch is as fast on this processor")
    rows: list[int] = []

    def spy(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        rows.append(len(x))
        return product.multiply_rows(x, weight, bias)

    monkeypatch.setattr("indextts2.models.dense.multiply_rows", spy)
    return rows


def test_dense_layers_use_it_for_few_rows_of_transposed_weights(calls: list[int]):
    x, weight, bias = tensors(product.MOST_ROWS + 1, 40, 33)
    with torch.inference_mode():
        for rows in (1, product.MOST_ROWS, product.MOST_ROWS + 1):
            wanted = x[:rows] @ weight + bias
            torch.testing.assert_close(linear(x[:rows], weight.t(), bias), wanted)
            torch.testing.assert_close(linear(x[:rows], weight.t().contiguous(), bias), wanted)
    assert calls == [1, product.MOST_ROWS]


def test_gradients_and_other_types_take_the_way_of_pytorch(calls: list[int]):
    x, weight, bias = tensors(2, 40, 33)
    weight.requires_grad_()
    linear(x, weight.t(), bias).sum().backward()
    assert weight.grad is not None
    with torch.inference_mode():
        linear(x.double(), weight.double().t(), bias.double())
        with torch.autocast("cpu", torch.bfloat16):
            assert linear(x, weight.t(), bias).dtype is torch.bfloat16
    assert calls == []
