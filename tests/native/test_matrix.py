"""The C kernel of products of matrices against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from indextts2.models import dense
from indextts2.native import library, matrix, product

pytestmark = pytest.mark.skipif(library.native().library is None, reason=library.native().status)


def tensors(rows: int, inputs: int, columns: int) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(rows + 10 * inputs + 1000 * columns)
    return torch.randn(rows, columns), torch.randn(rows, inputs), torch.randn(inputs, columns)


# Fewer and more than a register block, and than what is copied at once, with and without remainders.
@pytest.mark.parametrize("rows", [1, 5, 14, 15, 40, 97])
@pytest.mark.parametrize("inputs", [1, 17, 256, 300])
@pytest.mark.parametrize("columns", [1, 31, 32, 300, 519])
def test_equals_pytorch(rows: int, inputs: int, columns: int, instruction_set: None):
    result, left, right = tensors(rows, inputs, columns)
    wanted = result.double() + left.double() @ right.double()
    summed = result.abs() + left.abs() @ right.abs()
    assert matrix.add_product_(result, left, right) is result
    assert (result - wanted).norm() < 1e-7 * summed.norm()


def test_rows_with_gaps(instruction_set: None):
    result, left, right = tensors(40, 300, 70)
    wide = [torch.full((len(t), t.shape[1] + 9), float("nan")) for t in (result, left, right)]
    for gaps, t in zip(wide, (result, left, right), strict=True):
        gaps[:, 4:-5] = t
    matrix.add_product_(*(gaps[:, 4:-5] for gaps in wide))
    assert torch.equal(wide[0][:, 4:-5], matrix.add_product_(result, left, right))
    assert wide[0][:, :4].isnan().all() and wide[0][:, -5:].isnan().all()


@pytest.mark.parametrize("shape", [(97, 300, 170), (170, 300, 97)])
def test_same_bits_whatever_the_other_rows_and_the_threads(
    shape: tuple[int, int, int], instruction_set: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(matrix, "PRODUCTS_PER_THREAD", 1)
    _, left, right = tensors(*shape)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        few = [product.multiply_rows(row[None], right, None) for row in left]
        alone = torch.cat([matrix.add_product_(torch.zeros(1, shape[2]), row[None], right) for row in left])
        assert torch.equal(alone, torch.cat(few))
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            for rows in (1, 2, 13, 30, shape[0]):
                assert torch.equal(matrix.add_product_(torch.zeros(rows, shape[2]), left[:rows], right), alone[:rows])
    finally:
        torch.set_num_threads(threads)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of rows that `dense` leaves to the kernel."""
    if not (library.loaded().matrix_is_fast() and dense.uses_onednn()):
        pytest.skip("other libraries are as fast on this processor")
    rows: list[int] = []

    def spy(result: Tensor, left: Tensor, right: Tensor) -> Tensor:
        rows.append(len(left))
        return matrix.add_product_(result, left, right)

    monkeypatch.setattr("indextts2.models.dense.add_product_", spy)
    return rows


def close(actual: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("with_bias", [False, True])
def test_dense_layers_use_it_for_many_rows_of_transposed_weights(with_bias: bool, calls: list[int]):
    _, x, weight = tensors(66, 256, 130)
    bias = torch.randn(130) if with_bias else None
    kept = None if bias is None else bias.clone()
    wanted = x @ weight + (0 if bias is None else bias)
    with torch.inference_mode():
        close(dense.linear(x, weight.t(), bias), wanted)
        close(dense.linear(x.view(2, 33, 256), weight.t(), bias), wanted.view(2, 33, 130))
        close(dense.linear(x, weight.t().contiguous(), bias), wanted)
    assert calls == [66, 66]
    assert bias is None or kept is None or torch.equal(bias, kept)


def test_added_products(calls: list[int]):
    y, left, right = tensors(66, 256, 130)
    wanted = y + left @ right
    with torch.inference_mode():
        close(dense.add_product(y.clone(), left, right), wanted)
        close(dense.add_product(y.double(), left.double(), right.double()), wanted.double())
    assert calls == [66]
    left.requires_grad_()
    close(dense.add_product(y, left, right), wanted)
    assert calls == [66]
