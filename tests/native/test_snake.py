"""The C kernel of the activation against the PyTorch code in float64, both of which start from the same float32."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from indextts2.models.vocoder.activation import Activation, anti_aliased_snake, gradients
from indextts2.native import library

pytestmark = pytest.mark.skipif(library.native().library is None, reason=library.native().status)

# Around the edges of the row, of vectors and of strips.
LENGTHS = [*range(1, 21), 41, 1023, 1024, 1025, 1026, 1041, 2047, 2049, 3333]


def inputs(length: int, seed: int = 0) -> list[Tensor]:
    """x and the gradient by the output (2,3,length), frequency and magnitude (3,1)."""
    generator = torch.Generator().manual_seed(seed)
    x, gradient = (torch.randn(2, 3, length, generator=generator) for _ in range(2))
    frequency, magnitude = (torch.rand(3, 1, generator=generator) * 3 + 0.2 for _ in range(2))
    return [x, gradient, frequency, magnitude]


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("length", LENGTHS)
def test_forward_equals_pytorch(length: int, instruction_set: None):
    x, _, frequency, magnitude = inputs(length)
    expected = anti_aliased_snake(x.double(), frequency.double(), magnitude.double())
    actual = anti_aliased_snake(x, frequency, magnitude)
    assert actual.dtype == torch.float32
    assert relative(actual, expected) < 1e-6
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_equal_pytorch(length: int, instruction_set: None):
    tensors = inputs(length, seed=1)
    expected = gradients(*(t.double() for t in tensors))
    for actual, wanted in zip(gradients(*tensors), expected, strict=True):
        assert actual.shape == wanted.shape and relative(actual, wanted) < 1e-5


def test_gradient_is_the_slope_of_the_forward_pass():
    x, weight, frequency, magnitude = inputs(40, seed=2)
    analytic = gradients(x, weight, frequency, magnitude)
    step = 1e-2
    for index, gradient in enumerate(analytic):
        arguments = [x, frequency, magnitude]
        direction = torch.randn(arguments[index].shape, generator=torch.Generator().manual_seed(index))
        values = []
        for sign in (-1, 1):
            moved = list(arguments)
            moved[index] = moved[index] + sign * step * direction
            values.append(float((anti_aliased_snake(*moved) * weight).sum(dtype=torch.float64)))
        slope = (values[1] - values[0]) / (2 * step)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=5e-3, abs=5e-3)


@pytest.mark.parametrize("largest_angle", [10.0, 100.0, 1000.0])
def test_large_angles_are_as_exact_as_float32_allows(largest_angle: float, instruction_set: None):
    x, gradient, frequency, magnitude = inputs(500, seed=3)
    x = x / x.abs().max() * largest_angle / frequency
    tensors = (x, gradient, frequency, magnitude)
    expected = anti_aliased_snake(x.double(), frequency.double(), magnitude.double())
    # An angle of this size is known to about its spacing in float32, a few roundings of which add up.
    tolerance = 1e-6 + 4 * largest_angle * 2**-24
    error = (anti_aliased_snake(x, frequency, magnitude).double() - expected).abs().max()
    assert error < tolerance * (1 + float(magnitude.max()))
    for actual, wanted in zip(gradients(*tensors), gradients(*(t.double() for t in tensors)), strict=True):
        assert relative(actual, wanted) < tolerance + 1e-5


def test_sine_of_absurd_angles_stays_bounded(instruction_set: None):
    x = torch.full((1, 1, 20), 1e12)
    one = torch.ones(1, 1)
    y = anti_aliased_snake(x, one, one)
    torch.testing.assert_close(y, x, rtol=1e-6, atol=1.0)
    assert anti_aliased_snake(x * float("nan"), one, one).isnan().all()


def test_inputs_with_gaps():
    x, gradient, frequency, magnitude = inputs(60, seed=4)
    wide = torch.stack([x, -x], dim=-1)[..., 0]
    assert not wide.is_contiguous()
    assert torch.equal(anti_aliased_snake(wide, frequency, magnitude), anti_aliased_snake(x, frequency, magnitude))
    transposed = gradient.transpose(1, 2).contiguous().transpose(1, 2)
    for a, b in zip(
        gradients(wide, transposed, frequency, magnitude), gradients(x, gradient, frequency, magnitude), strict=True
    ):
        assert torch.equal(a, b)


@pytest.mark.parametrize("pool", [False, True])
def test_same_bits_on_several_threads(pool: bool, monkeypatch: pytest.MonkeyPatch):
    if pool:
        monkeypatch.setattr(library, "_openmp", lambda: None)
    tensors = inputs(30000, seed=5)
    x, _, frequency, magnitude = tensors
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append((anti_aliased_snake(x, frequency, magnitude), *gradients(*tensors)))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_module_trains_through_it():
    activation = Activation(3, True)
    x = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(6), requires_grad=True)
    wanted = [x, activation.act.alpha, activation.act.beta]
    actual = torch.autograd.grad(activation(x).square().sum(), wanted)
    twin = Activation(3, True).double()
    x64 = x.detach().double().requires_grad_()
    expected = torch.autograd.grad(twin(x64).square().sum(), [x64, twin.act.alpha, twin.act.beta])
    for a, e in zip(actual, expected, strict=True):
        assert relative(a, e) < 1e-5
