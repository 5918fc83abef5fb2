"""The C kernel of activation and convolution against PyTorch in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from indextts2.models.vocoder.activation import Activation, activated_convolution
from indextts2.native import convolution, library

pytestmark = pytest.mark.skipif(library.native().library is None, reason=library.native().status)


@pytest.fixture
def instruction_set(instruction_set: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variants, also those that are not chosen because PyTorch may be faster."""
    monkeypatch.setattr("indextts2.models.vocoder.activation.worthwhile", library.usable)


def layers(inputs: int, outputs: int, taps: int, dilation: int, bias: bool = True, logscale: bool = True):
    torch.manual_seed(inputs + 10 * outputs)
    activation = Activation(inputs, logscale)
    for parameter in activation.parameters():
        parameter.data += 0.3 * torch.randn(inputs)
    padding = dilation * (taps - 1) // 2
    return activation, nn.Conv1d(inputs, outputs, taps, dilation=dilation, padding=padding, bias=bias)


def expected(activation: Activation, layer: nn.Conv1d, x: Tensor, residual: Tensor | None) -> Tensor:
    """By the modules, in float64; the originals are left as they are."""
    y = layer.double()(activation.double()(x.double()))
    layer.float(), activation.float()
    return y if residual is None else y + residual


# Register blocks of every width with remainders, tiles with remainders, signals shorter than the kernel reaches.
SHAPES = [
    (3, 3, 1, 3, 1),
    (8, 8, 20, 3, 5),
    (5, 7, 333, 11, 5),
    (13, 29, 1700, 7, 3),
    (24, 1, 3000, 7, 1),
    (2, 6, 40, 1, 1),
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_residual", [False, True])
def test_equals_pytorch(shape: tuple[int, ...], with_residual: bool, instruction_set: None):
    inputs, outputs, length, taps, dilation = shape
    activation, layer = layers(inputs, outputs, taps, dilation, bias=with_residual, logscale=with_residual)
    x = torch.randn(2, inputs, length)
    residual = torch.randn(2, outputs, length) if with_residual else None
    kept = None if residual is None else residual.clone()
    with torch.inference_mode():
        actual = activated_convolution(activation, layer, x, residual)
        wanted = expected(activation, layer, x, residual)
    assert actual.dtype == torch.float32
    assert (actual - wanted).norm() < 1e-6 * wanted.norm()
    assert residual is None or torch.equal(residual, kept)


def test_same_bits_for_every_division_of_the_work(monkeypatch: pytest.MonkeyPatch):
    activation, layer = layers(48, 48, 7, 3)
    x, residual = torch.randn(1, 48, 700), torch.randn(1, 48, 700)
    threads = torch.get_num_threads()
    results = []
    try:
        with torch.inference_mode():
            # Eight threads find too few tiles and share out the channels.
            for count, longest in [(1, 1536), (1, 96), (2, 1536), (8, 1536)]:
                torch.set_num_threads(count)
                monkeypatch.setattr(convolution, "LONGEST_TILE", longest)
                results.append(activated_convolution(activation, layer, x, residual))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("inputs", [1, 3, 96, 768, 5000])
@pytest.mark.parametrize("length", [1, 95, 344, 22016, 1_000_000])
@pytest.mark.parametrize("threads", [1, 2, 7])
def test_tiles_cover_the_signal_and_fit_the_cache(inputs: int, length: int, threads: int):
    tile = convolution.tile_samples(inputs, length, threads)
    assert tile % convolution.TILE_MULTIPLE == 0
    assert tile == convolution.TILE_MULTIPLE or tile * inputs <= convolution.TILE_FLOATS
    assert tile <= convolution.LONGEST_TILE


def test_gradients_take_the_way_of_pytorch():
    activation, layer = layers(3, 3, 3, 1)
    x = torch.randn(1, 3, 30, requires_grad=True)
    activated_convolution(activation, layer, x, x).sum().backward()
    assert x.grad is not None and layer.weight.grad is not None and activation.act.alpha.grad is not None


def test_inputs_with_gaps():
    activation, layer = layers(4, 4, 3, 1)
    x, residual = torch.randn(1, 4, 30), torch.randn(1, 4, 30)
    with torch.inference_mode():
        wanted = activated_convolution(activation, layer, x, residual)
        gaps = [t.transpose(1, 2).contiguous().transpose(1, 2) for t in (x, residual)]
        assert torch.equal(activated_convolution(activation, layer, *gaps), wanted)
