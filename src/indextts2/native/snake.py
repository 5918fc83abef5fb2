"""The anti-aliased SnakeBeta of the vocoder in C: forward and backward, float32.

Legend: B batch, C channels, T samples.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from indextts2.native.library import Queue, loaded, run

# Fewer samples than this are not worth waking up another thread.
SAMPLES_PER_THREAD = 16384


class SnakeTask(ctypes.Structure):
    """Layout of snake.c."""

    _fields_ = (
        ("queue", Queue),
        *((name, ctypes.c_int64) for name in ("channels", "length", "strips")),
        *(
            (name, ctypes.c_void_p)
            for name in ("frequency", "magnitude", "filter", "x", "gradient", "result", "partial")
        ),
    )


def _run(kernel: str, strips: int, x: Tensor, **tensors: Tensor) -> None:
    batch, channels, length = x.shape
    task = SnakeTask(
        queue=Queue(batch * channels * strips, 0),
        channels=channels,
        length=length,
        strips=strips,
        x=x.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in tensors.items()},
    )
    threads = min(torch.get_num_threads(), max(x.numel() // SAMPLES_PER_THREAD, 1))
    run(getattr(loaded(), kernel), task, threads)


def _strips(x: Tensor) -> int:
    return int(loaded().snake_strips(x.shape[-1]))


def snake_forward(x: Tensor, frequency: Tensor, magnitude: Tensor, taps: Tensor) -> Tensor:
    """(B,C,T) -> (B,C,T); `frequency` and `magnitude` (C,1), `taps` (12)."""
    x, frequency, magnitude = x.contiguous(), frequency.contiguous(), magnitude.contiguous()
    result = torch.empty_like(x)
    _run(
        "snake_forward",
        _strips(x),
        x,
        frequency=frequency,
        magnitude=magnitude,
        filter=taps,
        result=result,
    )
    return result


def snake_backward(
    x: Tensor, gradient: Tensor, frequency: Tensor, magnitude: Tensor, taps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients by x (B,C,T), frequency (C,1) and magnitude (C,1), given that by the output."""
    x, gradient = x.contiguous(), gradient.contiguous()
    frequency, magnitude = frequency.contiguous(), magnitude.contiguous()
    strips = _strips(x)
    result = torch.empty_like(x)
    # One sum per strip, added up in a fixed order: the same bits for every number of threads.
    partial = x.new_empty(*x.shape[:2], strips, 2, dtype=torch.float64)
    _run(
        "snake_backward",
        strips,
        x,
        frequency=frequency,
        magnitude=magnitude,
        filter=taps,
        gradient=gradient,
        result=result,
        partial=partial,
    )
    sums = partial.sum((0, 2)).to(x.dtype)
    return result, sums[:, :1], sums[:, 1:]
