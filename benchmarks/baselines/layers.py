"""Layers by torch's own functions, on the weights of our modules, whichever library those compute with."""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn


def dense(layer: nn.Module, x: Tensor) -> Tensor:
    """The linear map of `layer`: (..., I) -> (..., O)."""
    return F.linear(x, cast("Tensor", layer.weight), cast("Tensor | None", layer.bias))


def convolve(layer: nn.Module, x: Tensor) -> Tensor:
    """The convolution of kernel 1 of `layer`: (B, C, T) -> (B, C', T)."""
    return F.conv1d(x, cast("Tensor", layer.weight), cast("Tensor | None", layer.bias))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, H, T, C / H)."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, H * D)."""
    return x.transpose(1, 2).flatten(2)
