"""The shifted sums against the definition of the activation: padding, transposed convolution, snake, convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from indextts2.models.vocoder.activation import EPSILON, REACH, Activation, kaiser_sinc_filter


def random_activation(channels: int, logscale: bool = True) -> Activation:
    generator = torch.Generator().manual_seed(3)
    activation = Activation(channels, logscale).double()
    for parameter in activation.parameters():
        parameter.data += 0.3 * torch.randn(channels, dtype=torch.float64, generator=generator)
    return activation


def by_definition(activation: Activation, x: torch.Tensor) -> torch.Tensor:
    channels = x.shape[1]
    taps = torch.tensor(kaiser_sinc_filter(), dtype=x.dtype).expand(channels, 1, -1)
    u = 2 * F.conv_transpose1d(F.pad(x, (5, 5), mode="replicate"), taps, stride=2, groups=channels)[..., 15:-15]
    a, b = activation.act.alpha[:, None], activation.act.beta[:, None]
    if activation.act.logscale:
        a, b = a.exp(), b.exp()
    s = u + torch.sin(a * u) ** 2 / (b + EPSILON)
    return F.conv1d(F.pad(s, (5, 6), mode="replicate"), taps, stride=2, groups=channels)


def test_filter_values():
    published = [0.002028965, 0.009389466, -0.025543459, -0.057657383, 0.128572583, 0.443209797]
    taps = kaiser_sinc_filter()
    torch.testing.assert_close(torch.tensor(taps[:6]), torch.tensor(published), rtol=0, atol=3e-8)
    assert taps == pytest.approx(taps[::-1]) and sum(taps) == pytest.approx(1)


@pytest.mark.parametrize("length", [1, 2, 5, 40])
@pytest.mark.parametrize("logscale", [True, False])
def test_equals_definition(length: int, logscale: bool):
    activation = random_activation(3, logscale)
    x = torch.randn(2, 3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    expected = by_definition(activation, x)
    torch.testing.assert_close(activation(x), expected, rtol=1e-12, atol=1e-12)
    with torch.inference_mode():
        torch.testing.assert_close(activation(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [1, 4, 17])
def test_gradients_equal_those_of_the_definition(length: int):
    activation = random_activation(3)
    x = torch.randn(2, 3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(2), requires_grad=True)
    weight = torch.randn(2, 3, length, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    wanted = [x, activation.act.alpha, activation.act.beta]
    expected = torch.autograd.grad((by_definition(activation, x) * weight).sum(), wanted)
    actual = torch.autograd.grad((activation(x) * weight).sum(), wanted)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-12)


def test_reach():
    x = torch.randn(1, 1, 41, dtype=torch.float64, requires_grad=True)
    random_activation(1)(x)[0, 0, 20].backward()
    touched = x.grad[0, 0].nonzero().flatten().tolist()
    assert touched == list(range(20 - REACH, 20 + REACH + 1))
