"""The anti-aliased SnakeBeta of the vocoder as one Triton kernel, for CUDA tensors: one read, one write.

Legend: B batch, C channels, T samples at the base rate. Positions of the doubled rate are called n, 0..2T-1.

With f the 12 taps and a the activation, the closed forms of spec 08 section 3 are

    u[n] = 2 * sum over j of f[2j + n%2] * x[n//2 + n%2 - 3 + j]      j = 0..5, x replicated at its edges
    y[t] = sum over i of f[i] * a(u[2t - 5 + i])                      i = 0..11, a(u) replicated at its edges

Every output computes the twelve activated samples that it needs. That is six times the sines of an exchange through
shared memory, and still little beside the convolutions around it. Triton comes with the CUDA builds of torch and is
imported by nobody else; this module is imported only where there are CUDA tensors.
"""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_SAMPLES = 512
MOST_BLOCKS = 65535
"""Of the second axis of a CUDA grid."""


@triton.jit
def _squared_sine(angle):
    """sin(angle)^2 by the polynomial of native/snake.h; the sine of the libraries has a slow branch for huge angles."""
    turns = tl.floor(angle * 0.318309886 + 0.5)
    r = angle - turns * 3.1415927410125732 + turns * 8.742277657347586e-08
    w = r * r
    low = -0.16666657114690378 + w * 0.008333017610538188
    high = -0.000198066325816718 + w * 2.6000846717888493e-06
    sine = r + r * w * (low + w * w * high)
    return tl.minimum(sine * sine, 1.0)


@triton.jit
def _activated(x, t, odd: tl.constexpr, length, taps, frequency, magnitude):
    """a(u) at the positions 2 t + odd of the row at `x`; `t` lies in 0..length-1."""
    u = 0.0
    for j in tl.static_range(6):
        source = tl.minimum(tl.maximum(t + (odd - 3 + j), 0), length - 1)
        u += 2.0 * tl.load(taps + (2 * j + odd)) * tl.load(x + source)
    return u + magnitude * _squared_sine(u * frequency)


@triton.jit
def _forward(x, y, frequencies, magnitudes, taps, channels, length, block: tl.constexpr):
    """One block of samples of one row (batch, channel)."""
    row = tl.program_id(0)
    x += row.to(tl.int64) * length
    y += row.to(tl.int64) * length
    frequency = tl.load(frequencies + row % channels)
    magnitude = tl.load(magnitudes + row % channels)
    first = _activated(x, 0, 0, length, taps, frequency, magnitude)
    last = _activated(x, length - 1, 1, length, taps, frequency, magnitude)
    t = tl.program_id(1) * block + tl.arange(0, block)
    total = 0.0
    for i in tl.static_range(12):
        source = t + (i - 5 - (i + 1) % 2) // 2
        inside = tl.minimum(tl.maximum(source, 0), length - 1)
        value = _activated(x, inside, (i + 1) % 2, length, taps, frequency, magnitude)
        value = tl.where(source < 0, first, tl.where(source < length, value, last))
        total += tl.load(taps + i) * value
    tl.store(y + t, total, mask=t < length)


@functools.cache
def _taps_on(device: torch.device, taps: tuple[float, ...]) -> Tensor:
    return torch.tensor(taps, dtype=torch.float32, device=device)


def usable(*tensors: Tensor) -> bool:
    """Whether the kernel can compute on these: plain float32, few enough samples in a row, nothing being compiled."""
    if any(t.dtype is not torch.float32 for t in tensors) or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    return tensors[0].numel() > 0 and tensors[0].shape[-1] <= MOST_BLOCKS * BLOCK_SAMPLES


def snake_forward(x: Tensor, frequency: Tensor, magnitude: Tensor, taps: tuple[float, ...]) -> Tensor:
    """(B,C,T) -> (B,C,T) without gradients; `frequency` and `magnitude` (C,1), `taps` the 12 of the filter."""
    x, frequency, magnitude = x.contiguous(), frequency.contiguous(), magnitude.contiguous()
    batch, channels, length = x.shape
    y = torch.empty_like(x)
    grid = (batch * channels, triton.cdiv(length, BLOCK_SAMPLES))
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _forward[grid](x, y, frequency, magnitude, _taps_on(x.device, taps), channels, length, block=BLOCK_SAMPLES)
    return y
