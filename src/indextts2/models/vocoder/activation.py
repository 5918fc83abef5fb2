"""Anti-aliased SnakeBeta of BigVGAN: up-sample by 2, periodic activation, down-sample by 2.

Legend: B batch, C channels, T samples at the base rate.

Three implementations of one calculation: the C kernel of indextts2.native for float32 on the CPU and a Triton kernel
for float32 on CUDA devices, which keep the doubled rate out of the memory and pass over it once, and the PyTorch code
below for everything else.

There the signal at the doubled rate is kept as its two phases (`even` 2t, `odd` 2t+1), so that every filter is a sum of
six shifted copies: on CPUs this is faster than grouped convolutions, and nothing is interleaved. Both phases carry
`MARGIN` more positions at each end, because the down-sampler replicates the *activated* edge samples.

Source: BigVGAN (Lee et al., 2023), spec 08 section 3.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from indextts2.native import library
from indextts2.native.convolution import convolve_activated, worthwhile
from indextts2.native.snake import snake_backward, snake_forward

TAPS = 12
# Positions at the base rate that the down-sampler reads beyond either end of the phases.
MARGIN = 3
# Input samples on either side that one output sample depends on.
REACH = 5
# Added to the divisor of the activation, as in the published model.
EPSILON = 1e-9


def kaiser_sinc_filter(taps: int = TAPS, cutoff: float = 0.25, half_width: float = 0.3) -> list[float]:
    """Symmetric low-pass filter of unit gain; `cutoff` and `half_width` in cycles per sample of the doubled rate."""
    attenuation_db = 2.285 * (taps // 2 - 1) * math.pi * 4 * half_width + 7.95
    if attenuation_db > 50:
        beta = 0.1102 * (attenuation_db - 8.7)
    elif attenuation_db >= 21:
        beta = 0.5842 * (attenuation_db - 21) ** 0.4 + 0.07886 * (attenuation_db - 21)
    else:
        beta = 0.0
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64, device="cpu")
    time = torch.arange(taps, dtype=torch.float64, device="cpu") - (taps - 1) / 2
    values = window * torch.sinc(2 * cutoff * time)
    return [float(v) for v in values / values.sum()]


@functools.cache
def _taps() -> Tensor:
    return torch.tensor(kaiser_sinc_filter(), dtype=torch.float32, device="cpu")


class PhaseFilter(NamedTuple):
    """y[t] = sum over j of taps[j] * x[t + first + j]; positions count from the start of the padded input."""

    first: int
    taps: tuple[float, ...]

    def apply(self, x: Tensor, length: int) -> Tensor:
        """Filter the last axis of `x` (..., N) to (..., length)."""
        y = x.narrow(-1, self.first, length) * self.taps[0]
        for j, tap in enumerate(self.taps[1:], start=self.first + 1):
            y.add_(x.narrow(-1, j, length), alpha=tap)
        return y

    def add_transposed(self, gradient: Tensor, to: Tensor) -> None:
        """Adjoint of `apply`: add the gradient (..., length) to that of the padded input (..., N)."""
        for j, tap in enumerate(self.taps, start=self.first):
            to.narrow(-1, j, gradient.shape[-1]).add_(gradient, alpha=tap)


class PhaseFilters(NamedTuple):
    up_even: PhaseFilter
    up_odd: PhaseFilter
    down_even: PhaseFilter
    down_odd: PhaseFilter


@functools.cache
def phase_filters() -> PhaseFilters:
    """The four closed forms of spec 08 sections 3.2 and 3.4, written with the symmetry f[n] = f[11-n]."""
    f = kaiser_sinc_filter()
    even, odd = tuple(f[0::2]), tuple(f[1::2])
    return PhaseFilters(
        up_even=PhaseFilter(0, tuple(2 * v for v in odd[::-1])),
        up_odd=PhaseFilter(1, tuple(2 * v for v in even[::-1])),
        down_even=PhaseFilter(1, odd),
        down_odd=PhaseFilter(0, even),
    )


def upsample(x: Tensor) -> tuple[Tensor, Tensor]:
    """(B,C,T) -> even and odd phase (B,C,T+2*MARGIN) of the doubled rate, the edge samples replicated in `x`."""
    filters = phase_filters()
    edges = [edge.expand(*x.shape[:-1], 2 * MARGIN) for edge in (x[..., :1], x[..., -1:])]
    padded = torch.cat([edges[0], x, edges[1]], dim=-1)
    length = x.shape[-1] + 2 * MARGIN
    return filters.up_even.apply(padded, length), filters.up_odd.apply(padded, length)


def downsample(even: Tensor, odd: Tensor) -> Tensor:
    """Phases (B,C,T+2*MARGIN), whose margins are overwritten by the edge samples, -> (B,C,T)."""
    first, last = even[..., MARGIN : MARGIN + 1], odd[..., -MARGIN - 1 : -MARGIN]
    for phase in (even, odd):
        phase[..., :MARGIN] = first
        phase[..., -MARGIN:] = last
    length = even.shape[-1] - 2 * MARGIN
    filters = phase_filters()
    y = filters.down_even.apply(even, length)
    return y.add_(filters.down_odd.apply(odd, length))


def snake_(u: Tensor, frequency: Tensor, magnitude: Tensor) -> Tensor:
    """In place: u + magnitude * sin(frequency * u)^2, both factors per channel (C,1)."""
    sine = torch.mul(u, frequency).sin_()
    return u.addcmul_(sine.square_(), magnitude)


def snake_gradients(u: Tensor, g: Tensor, frequency: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of the activation by its input (B,C,T), frequency (C,1) and magnitude (C,1); `g` by its output."""
    angle = u * frequency
    g_magnitude = (torch.sin(angle).square_() * g).sum((0, 2))[:, None]
    # d sin^2(z)/dz = sin(2z)
    slope = angle.mul_(2).sin_().mul_(g)
    g_frequency = (slope * u).sum((0, 2))[:, None] * magnitude
    return slope.mul_(frequency * magnitude).add_(g), g_frequency, g_magnitude


def triton_kernel(*tensors: Tensor) -> ModuleType | None:
    """The module `snake_triton` where it can compute on these; it is imported for CUDA tensors only."""
    if not tensors[0].is_cuda or not _has_triton():
        return None
    from indextts2.models.vocoder import snake_triton

    return snake_triton if snake_triton.usable(*tensors) else None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def anti_aliased_snake(x: Tensor, frequency: Tensor, magnitude: Tensor) -> Tensor:
    """(B,C,T) -> (B,C,T) without gradients; `frequency` and `magnitude` (C,1)."""
    if library.usable(x, frequency, magnitude):
        return snake_forward(x, frequency, magnitude, _taps())
    if (kernel := triton_kernel(x, frequency, magnitude)) is not None:
        result: Tensor = kernel.snake_forward(x, frequency, magnitude, tuple(kaiser_sinc_filter()))
        return result
    even, odd = upsample(x)
    return downsample(snake_(even, frequency, magnitude), snake_(odd, frequency, magnitude))


def gradients(x: Tensor, gradient: Tensor, frequency: Tensor, magnitude: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x (B,C,T), frequency (C,1) and magnitude (C,1); `gradient` (B,C,T) is that by the output."""
    if library.usable(x, gradient, frequency, magnitude):
        return snake_backward(x, gradient, frequency, magnitude, _taps())
    filters, length = phase_filters(), x.shape[-1]
    padded = x.new_zeros(*x.shape[:-1], length + 4 * MARGIN)
    totals = [torch.zeros_like(frequency), torch.zeros_like(magnitude)]
    activated = [x.new_zeros(*x.shape[:-1], length + 2 * MARGIN) for _ in range(2)]
    filters.down_even.add_transposed(gradient, activated[0])
    filters.down_odd.add_transposed(gradient, activated[1])
    activated[0][..., MARGIN] += sum(g[..., :MARGIN].sum(-1) for g in activated)
    activated[1][..., -MARGIN - 1] += sum(g[..., -MARGIN:].sum(-1) for g in activated)
    for u, g, up in zip(upsample(x), activated, (filters.up_even, filters.up_odd), strict=True):
        inner_u, inner_g = u.narrow(-1, MARGIN, length), g.narrow(-1, MARGIN, length)
        g_u, g_frequency, g_magnitude = snake_gradients(inner_u, inner_g, frequency, magnitude)
        totals[0] += g_frequency
        totals[1] += g_magnitude
        up.add_transposed(g_u, padded.narrow(-1, MARGIN, length + 2 * MARGIN))
    g_x = padded.narrow(-1, 2 * MARGIN, length)
    g_x[..., 0] += padded[..., : 2 * MARGIN].sum(-1)
    g_x[..., -1] += padded[..., -2 * MARGIN :].sum(-1)
    return g_x, totals[0], totals[1]


class _AntiAliasedSnake(torch.autograd.Function):
    """The activation with a backward pass that keeps only the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, frequency: Tensor, magnitude: Tensor) -> Tensor:
        ctx.save_for_backward(x, frequency, magnitude)
        return anti_aliased_snake(x, frequency, magnitude)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, frequency, magnitude = ctx.saved_tensors
        return gradients(x, gradient, frequency, magnitude)


class SnakeBeta(nn.Module):
    """Parameters of u + sin(a u)^2 / b: logarithms of a and b when `logscale`, else a and b themselves."""

    def __init__(self, channels: int, logscale: bool) -> None:
        super().__init__()
        self.logscale = logscale
        start = torch.zeros if logscale else torch.ones
        self.alpha = nn.Parameter(start(channels))
        self.beta = nn.Parameter(start(channels))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Frequency a and magnitude 1/b, each (C,1)."""
        a, b = (self.alpha.exp(), self.beta.exp()) if self.logscale else (self.alpha, self.beta)
        return a[:, None], (b + EPSILON).reciprocal()[:, None]


class Activation(nn.Module):
    """(B,C,T) -> (B,C,T)."""

    def __init__(self, channels: int, logscale: bool) -> None:
        super().__init__()
        self.act = SnakeBeta(channels, logscale)

    def forward(self, x: Tensor) -> Tensor:
        frequency, magnitude = self.act.factors()
        if torch.is_grad_enabled() and (x.requires_grad or frequency.requires_grad):
            result: Tensor = _AntiAliasedSnake.apply(x, frequency, magnitude)
            return result
        return anti_aliased_snake(x, frequency, magnitude)


def activated_convolution(
    activation: nn.Module, convolution: nn.Module, x: Tensor, residual: Tensor | None = None
) -> Tensor:
    """convolution(activation(x)) + residual: (B,C,T) -> (B,O,T).

    An `Activation` and a `Conv1d` with an odd kernel that keeps the length. In inference on the CPU one C kernel
    does all of it.
    """
    assert isinstance(activation, Activation) and isinstance(convolution, nn.Conv1d)
    act, weight, bias = activation.act, convolution.weight, convolution.bias
    others = [t for t in (act.alpha, act.beta, bias, residual) if t is not None]
    if not torch.is_grad_enabled() and worthwhile(x, weight, *others):
        dilation = convolution.dilation[0]
        return convolve_activated(x, act.alpha, act.beta, act.logscale, _taps(), weight, bias, dilation, residual)
    y: Tensor = convolution(activation(x))
    return y if residual is None else y.add_(residual)
