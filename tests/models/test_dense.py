"""Dense layers: the same results from both libraries, and who computes what."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.models import dense
from indextts2.models.s2mel.wavenet import NestedConv, conv_frames
from tests.conftest import relative_l2

Use = Callable[[str], None]


@pytest.fixture
def use(monkeypatch: pytest.MonkeyPatch) -> Iterator[Use]:
    """Chooses the library."""

    def choose(library: str) -> None:
        monkeypatch.setenv(dense.LIBRARY_VARIABLE, library)
        dense._choice.cache_clear()

    yield choose
    monkeypatch.undo()
    dense._choice.cache_clear()


@pytest.fixture
def onednn(use: Use) -> None:
    use("onednn")
    if not dense.uses_onednn():
        pytest.skip("this torch has no product by oneDNN")


@pytest.fixture
def calls(onednn: None, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the rows that oneDNN got; it also gets what our kernels would take (tests of them: tests/native)."""
    product, shapes = dense._product, []

    def spy(x: Tensor, *rest: object) -> Tensor:
        shapes.append(tuple(x.shape))
        return product(x, *rest)

    monkeypatch.setattr(dense, "_product", spy)
    monkeypatch.setattr(dense, "few_rows", lambda x, weight: False)
    monkeypatch.setattr(dense, "addable", lambda *matrices: False)
    return shapes


def weights(outputs: int, inputs: int) -> dict[str, Tensor]:
    """One weight in every layout that layers have."""
    weight = torch.randn(outputs, inputs)
    wide = torch.cat((torch.randn(outputs, 3), weight, torch.randn(outputs, 5)), dim=1)
    return {"rows": weight, "columns": weight.t().contiguous().t(), "part": wide[:, 3 : 3 + inputs]}


@pytest.mark.parametrize("layout", ["rows", "columns", "part"])
@pytest.mark.parametrize("shape", [(1, 1200, 900), (3, 640, 700), (130, 100, 90)])
def test_linear(calls: list[tuple[int, ...]], shape: tuple[int, int, int], layout: str) -> None:
    rows, inputs, outputs = shape
    weight, x, bias = weights(outputs, inputs)[layout], torch.randn(2, rows, inputs), torch.randn(outputs)
    with torch.inference_mode():
        for value in (x, x.transpose(0, 1), torch.cat((x, x), dim=-1)[..., inputs:]):
            for b in (bias, None):
                found = dense.linear(value, weight, b)
                assert found.shape == (*value.shape[:-1], outputs)
                assert relative_l2(found, F.linear(value, weight, b)) < 1e-6
    assert len(calls) == 6


def test_small_products_stay_with_torch(calls: list[tuple[int, ...]]) -> None:
    x, weight = torch.randn(1, 192), torch.randn(576, 192)
    with torch.inference_mode():
        assert torch.equal(dense.linear(x, weight), F.linear(x, weight))
        assert dense.linear(x[:0], weight).shape == (0, 576)
    assert not calls


def test_gradients_and_other_types_stay_with_torch(calls: list[tuple[int, ...]]) -> None:
    layer, x = dense.Linear(300, 200), torch.randn(64, 300)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.abs().sum() > 0
    with torch.inference_mode():
        assert layer.double()(x.double()).dtype is torch.float64
        layer.float()
        with torch.autocast("cpu", torch.bfloat16):
            assert layer(x).dtype is torch.bfloat16
        assert not calls
        layer(x)
    assert calls == [(64, 300)]


def test_a_layer_is_an_ordinary_one() -> None:
    assert set(dense.Linear(3, 2).state_dict()) == {"weight", "bias"}
    assert isinstance(dense.Linear(3, 2, bias=False), torch.nn.Linear)


@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (150, 310), (513, 600)])
def test_attention(calls: list[tuple[int, ...]], queries: int, keys: int) -> None:
    q, k, v = torch.randn(2, queries, 3, 32), torch.randn(2, keys, 3, 32), torch.randn(2, keys, 3, 32)
    parts = [part.transpose(1, 2) for part in (q, k, v)]
    with torch.inference_mode():
        found = dense.attention(q, k, v)
        assert calls and found.shape == q.shape
        assert relative_l2(found, F.scaled_dot_product_attention(*parts).transpose(1, 2)) < 1e-6
        calls.clear()
        mask = torch.arange(keys).lt(keys - 9)[None, None, None]
        masked = F.scaled_dot_product_attention(*parts, attn_mask=mask).transpose(1, 2)
        assert torch.equal(dense.attention(q, k, v, mask), masked)
    assert not calls


def test_gate_without_and_with_gradients() -> None:
    gate, value = torch.randn(4, 5), torch.randn(4, 5)
    expected = F.silu(gate) * value
    kept = gate.clone()
    assert torch.equal(dense.silu_gate(gate, value), expected) and torch.equal(gate, kept)
    with torch.no_grad():
        assert torch.equal(dense.silu_gate(gate, value), expected)


def test_convolution_over_frames(onednn: None) -> None:
    layer = NestedConv(24, 40, 5).requires_grad_(False)
    y = torch.randn(2, 90, 24)
    with torch.inference_mode():
        for dilation in (1, 3):
            expected = conv_frames(y, layer.weight, dilation)
            assert relative_l2(layer.convolve(y, dilation), expected) < 1e-6
    layer.weight.mul_(2)  # what is kept of the weight must follow
    with torch.inference_mode():
        assert relative_l2(layer.convolve(y, 3), 2 * expected) < 1e-6
    layer.requires_grad_(True)
    layer.convolve(y, 1).sum().backward()
    assert layer.weight.grad is not None


def test_rounded_factors() -> None:
    layer, x = dense.Linear(300, 200).requires_grad_(False), torch.randn(7, 300)
    with torch.inference_mode():
        exact = layer(x)
        with dense.products_in(torch.bfloat16):
            rounded, free = layer(x), dense.linear(x, layer.weight, layer.bias)
        assert torch.equal(layer(x), exact)
    assert rounded.dtype is torch.float32 and torch.equal(rounded, free)
    assert 1e-4 < relative_l2(rounded, exact) < 1e-2
    layer.weight.mul_(2)  # the rounded copy must follow
    with torch.inference_mode(), dense.products_in(torch.bfloat16):
        assert relative_l2(layer(x) - layer.bias, 2 * (rounded - layer.bias)) < 1e-6
    with dense.products_in(torch.bfloat16):  # gradients are exact
        assert torch.equal(dense.linear(x, layer.weight), F.linear(x, layer.weight))


def test_several_kinds_are_kept_until_the_weight_changes() -> None:
    kept: dense.Kept[int] = dense.Kept()
    weight, made = torch.randn(3), iter(range(10))
    first = [kept.get(weight, kind, lambda _: next(made)) for kind in ("a", "b", "a", "b")]
    weight.add_(1)
    second = [kept.get(weight, kind, lambda _: next(made)) for kind in ("a", "b", "a")]
    other = kept.get(weight.clone(), "a", lambda _: next(made))
    assert (first, second, other) == ([0, 1, 0, 1], [2, 3, 2], 4)


def test_rounding_is_of_one_thread_and_ends_with_an_error() -> None:
    x, seen = torch.randn(2, 3), []
    with torch.inference_mode():
        with pytest.raises(ZeroDivisionError), dense.products_in(torch.bfloat16):
            assert dense.reduced_dtype(x) is torch.bfloat16
            thread = threading.Thread(target=lambda: seen.append(dense.reduced_dtype(x)))
            thread.start()
            thread.join()
            raise ZeroDivisionError
        assert seen == [None] and dense.reduced_dtype(x) is None


def test_the_processor_chooses(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use("torch")
    assert not dense.uses_onednn()
    monkeypatch.setattr(dense, "_is_intel", lambda: True)
    use("")
    assert not dense.uses_onednn()
    monkeypatch.setattr(dense, "_is_intel", lambda: False)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    use("")
    assert not dense.uses_onednn()


def test_without_the_operator_torch_computes(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace())
    use("onednn")
    assert not dense.uses_onednn()
    x, weight = torch.randn(64, 300), torch.randn(200, 300)
    with torch.inference_mode():
        assert torch.equal(dense.linear(x, weight), F.linear(x, weight))


def test_an_operator_that_means_something_else_is_not_used(use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    other = SimpleNamespace(default=lambda x, weight, *_: 2 * F.linear(x, weight))
    monkeypatch.setattr(torch.ops, "mkldnn", SimpleNamespace(_linear_pointwise=other))
    use("onednn")
    assert not dense.uses_onednn()
