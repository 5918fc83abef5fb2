"""The C kernel of attention over a cache against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.native import attention, library

pytestmark = pytest.mark.skipif(library.native().library is None, reason=library.native().status)
CAPACITY = 200


def tensors(rows: int, heads: int, width: int, held: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of new rows, both buffers, and a mask of rows that do not see each other."""
    torch.manual_seed(rows + 10 * held)
    mask = torch.where(torch.rand(rows, held) < 0.3, float("-inf"), 0.0)
    own = torch.where(torch.eye(rows) == 1, 0.0, float("-inf"))
    buffers = torch.full((2, 1, heads, CAPACITY, width), float("nan"))
    buffers[:, :, :, :held] = torch.randn(2, 1, heads, held, width)
    return torch.randn(rows, 3 * heads * width), *buffers, torch.cat((mask, own), dim=1)


@pytest.mark.parametrize("held", [0, 1, 3, 20, 131])
@pytest.mark.parametrize("rows", [1, 3, 8])
@pytest.mark.parametrize("width", [32, 64, 96])
@pytest.mark.parametrize("with_mask", [False, True])
def test_equals_pytorch(held: int, rows: int, width: int, with_mask: bool, instruction_set: None):
    heads = 3
    qkv, keys, values, mask = tensors(rows, heads, width, held)
    q, k, v = qkv.view(1, rows, 3, heads, width).permute(2, 0, 3, 1, 4)
    all_keys, all_values = (torch.cat((t[:, :, :held], new), dim=2) for t, new in ((keys, k), (values, v)))
    seen = mask.double() if with_mask else None
    wanted = F.scaled_dot_product_attention(q.double(), all_keys.double(), all_values.double(), attn_mask=seen)
    actual = attention.attend_rows(qkv, keys, values, held, mask if with_mask else None)
    torch.testing.assert_close(actual, wanted.transpose(1, 2).reshape(rows, -1).float(), rtol=1e-5, atol=2e-6)
    for buffer, appended in ((keys, all_keys), (values, all_values)):
        assert torch.equal(buffer[:, :, : held + rows], appended)
        assert buffer[:, :, held + rows :].isnan().all()


def test_same_bits_whatever_the_other_queries_and_the_threads(instruction_set: None, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "PRODUCTS_PER_THREAD", 1)
    qkv, keys, values, mask = tensors(4, 5, 64, 77)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        wanted = attention.attend_rows(qkv, keys, values, 77, mask)
        for count in (2, 7):
            torch.set_num_threads(count)
            assert torch.equal(attention.attend_rows(qkv, keys, values, 77, mask), wanted)
    finally:
        torch.set_num_threads(threads)
    others = qkv.clone()
    others[1:, : 5 * 64] = torch.randn(3, 5 * 64)
    assert torch.equal(attention.attend_rows(others, keys, values, 77, mask)[0], wanted[0])


def test_what_the_kernel_does_not_compute(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(attention, "is_fast", lambda: True)
    qkv, keys = torch.randn(2, 3 * 64), torch.randn(1, 2, 8, 32)
    with torch.inference_mode():
        assert attention.attends(qkv, keys)
        assert not attention.attends(qkv.double(), keys.double())
        assert not attention.attends(torch.randn(2, 3 * 40), torch.randn(1, 2, 8, 20))
        assert not attention.attends(torch.randn(attention.MOST_ROWS + 1, 3 * 64), keys)
    assert not attention.attends(qkv, keys)
