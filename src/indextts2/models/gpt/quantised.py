"""Weights of the decoder rounded to 8 or 4 bits, for steps of a few rows on a CPU (spec 10 sections 2 and 6).

Legend: R rows, I inputs, O outputs, G group size.

A decoding step reads every weight once, and takes as long as that takes. Rows are rounded to bfloat16 for products that
unpack the weights on the fly, by kernels of torch. Only decoding uses such weights: the prefix and the second pass have
many rows, for which reading weights is not what takes time, and stay exact.
"""

from __future__ import annotations

import functools
import logging
from typing import Protocol

import torch
from torch import Tensor

from indextts2.errors import UsageError

logger = logging.getLogger(__name__)

MOST_ROWS = 32
"""Steps of more rows use the weights as they are loaded."""
INPUT_MULTIPLE = 32
"""The kernels read that many inputs at once, and beyond the end of others."""
INT4_GROUP = 32
INT4_OUTPUT_MULTIPLE = 16
SMALLEST_SCALE = 1e-12
CACHED_BYTES = 64 << 20
"""Weights that lie in the caches of a processor anyway are not worth rounding."""


class RoundedWeight(Protocol):
    """A weight in few bits."""

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        """Rows (R, I) and a bias (O,) -> (R, O), in the type of the bias."""


class Int8Weight:
    """Eight bits per weight and a scale per output."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` (O, I)."""
        exact = weight.float().contiguous()
        # The scale is rounded before the weights are, so that its own rounding costs nothing.
        self.scale = (exact.abs().amax(dim=1) / 127).clamp(min=SMALLEST_SCALE).bfloat16()
        self.weight = (exact / self.scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8)

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        return torch.add(torch._weight_int8pack_mm(x.bfloat16(), self.weight, self.scale), bias).to(bias.dtype)


class Int4Weight:
    """Four bits per weight; a scale and an offset per `INT4_GROUP` inputs of an output."""

    def __init__(self, weight: Tensor) -> None:
        """`weight` (O, I)."""
        groups = weight.float().contiguous().unflatten(1, (-1, INT4_GROUP))
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scale = ((high - low) / 15).clamp(min=SMALLEST_SCALE).bfloat16()
        middle = (low + 8 * scale.float()).bfloat16()
        levels = (groups - middle.float()[..., None]) / scale.float()[..., None] + 8
        levels = levels.round().clamp(0, 15).to(torch.int32).flatten(1)
        self.packed = torch._convert_weight_to_int4pack_for_cpu(levels, 1)
        self.scale_and_middle = torch.stack((scale, middle), dim=-1).transpose(0, 1).contiguous()

    def __call__(self, x: Tensor, bias: Tensor) -> Tensor:
        product = torch._weight_int4pack_mm_for_cpu(x.bfloat16(), self.packed, INT4_GROUP, self.scale_and_middle)
        return torch.add(product, bias).to(bias.dtype)


def rounded(weight: Tensor, kind: str) -> RoundedWeight:
    """`weight` (O, I) in the kind "int8" or "int4"; where the kernel of int4 cannot have this many outputs, in int8."""
    if kind == "int4" and weight.shape[0] % INT4_OUTPUT_MULTIPLE == 0:
        return Int4Weight(weight)
    return Int8Weight(weight)


def check_weights(kind: str, device: torch.device, width: int) -> None:
    """Raise UsageError unless a decoder of `width` can have weights of this kind on `device`."""
    if kind == "full":
        return
    if device.type != "cpu":
        raise UsageError(f"gpt_weights {kind} is for CPUs, and the model is on {device}; use full")
    if width % INPUT_MULTIPLE:
        raise UsageError(f"gpt_weights {kind} needs a GPT whose width is a multiple of {INPUT_MULTIPLE}, not {width}")
    if not kernels_work(kind):
        raise UsageError(f"torch {torch.__version__} has no working kernel for gpt_weights {kind} here; use full")


def automatic_weights(device: torch.device, width: int, layers: int) -> str:
    """What "auto" means for a decoder of this size: int8 where that makes steps shorter."""
    large = 12 * layers * width**2 * 4 > CACHED_BYTES
    usable = device.type == "cpu" and width % INPUT_MULTIPLE == 0
    return "int8" if large and usable and kernels_work("int8") else "full"


@functools.cache
def kernels_work(kind: str) -> bool:
    """Whether this torch has the operators, which are no public ones, and they mean what they are taken for."""
    generator = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(shape, generator=generator) for shape in ((48, 96), (3, 96)))
    try:
        with torch.inference_mode():
            found = rounded(weight, kind)(x, torch.zeros(48))
    except (AttributeError, RuntimeError) as error:
        logger.info("no kernel for %s: %s", kind, error)
        return False
    expected = x @ weight.t()
    tolerance = {"int8": 0.03, "int4": 0.2}[kind]
    return bool((found - expected).norm() < tolerance * expected.norm())
