"""A convolution with the anti-aliased SnakeBeta before it, in C, for inference in float32.

Legend: B batch, I input channels, O output channels, K taps, T samples.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indextts2.native.library import Queue, loaded, run, usable

# Floats of the scratch of a thread: the activated input of one tile stays in the second-level cache.
TILE_FLOATS = 73728
LONGEST_TILE = 1536
# Tiles are multiples of this, which holds whole register blocks of nearly every shape.
TILE_MULTIPLE = 96
# With more threads than tiles, output channels are shared out too, but not fewer than these at a time.
GROUP_CHANNELS = 24
# Rows of the scratch keep apart from each other by odd multiples of a cache line.
LINE_FLOATS = 16


class ConvolutionTask(ctypes.Structure):
    """Layout of convolution.c."""

    _fields_ = (
        ("queue", Queue),
        *((name, ctypes.c_int64) for name in ("inputs", "outputs", "length", "taps", "dilation")),
        *((name, ctypes.c_int64) for name in ("tile", "tiles", "groups", "worker", "stride", "logscale")),
        *((name, ctypes.c_void_p) for name in ("alpha", "beta", "filter", "x", "weight")),
        *((name, ctypes.c_void_p) for name in ("bias", "residual", "result", "scratch")),
    )


def worthwhile(*tensors: Tensor) -> bool:
    """Whether `convolve_activated` can compute with these, on a processor where that is faster than PyTorch."""
    return usable(*tensors) and bool(loaded().convolution_is_fast())


def convolve_activated(
    x: Tensor,
    alpha: Tensor,
    beta: Tensor,
    logscale: bool,
    taps: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    dilation: int,
    residual: Tensor | None,
) -> Tensor:
    """W * snake(x) + bias (+ residual) without gradients: (B,I,T) -> (B,O,T), zeros beyond the ends of snake(x).

    `alpha` and `beta` (I) are the parameters of the activation, `taps` (12) its filter, `weight` (O,I,K) with odd K,
    `residual` (B,O,T).
    """
    x, weight = x.contiguous(), weight.contiguous()
    batch, inputs, length = x.shape
    outputs, _, kernel = weight.shape
    threads = torch.get_num_threads()
    tile = tile_samples(inputs, length, -(-threads // batch))
    tiles = -(-length // tile)
    groups = max(min(threads // (batch * tiles), outputs // GROUP_CHANNELS), 1)
    pieces = batch * tiles * groups
    threads = min(threads, pieces)
    stride = _stride(tile + dilation * (kernel - 1))
    result = x.new_empty(batch, outputs, length)
    scratch = x.new_empty(threads, inputs, stride)
    if residual is not None:
        residual = residual.contiguous()
    task = ConvolutionTask(
        Queue(pieces, 0),
        *(inputs, outputs, length, kernel, dilation),
        *(tile, tiles, groups, 0, stride, logscale),
        *(alpha.data_ptr(), beta.data_ptr(), taps.data_ptr(), x.data_ptr(), weight.data_ptr()),
        None if bias is None else bias.data_ptr(),
        None if residual is None else residual.data_ptr(),
        *(result.data_ptr(), scratch.data_ptr()),
    )
    run(loaded().convolve_activated, task, threads)
    return result


def tile_samples(inputs: int, length: int, threads: int) -> int:
    """Samples per tile: as many as the cache holds, an equal share for every thread."""
    longest = max(min(TILE_FLOATS // inputs, LONGEST_TILE), TILE_MULTIPLE)
    tiles = -(-length // longest)
    tiles = -(-tiles // threads) * threads
    return -(-length // (tiles * TILE_MULTIPLE)) * TILE_MULTIPLE


def _stride(samples: int) -> int:
    lines = -(-(samples + int(loaded().convolution_slack())) // LINE_FLOATS)
    return (lines | 1) * LINE_FLOATS
