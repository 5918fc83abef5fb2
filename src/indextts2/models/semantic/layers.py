"""Small pieces that the encoder of semantic features and the codec share.

Axes: B batch, T frames (50 Hz), C channels. Activations are (B, T, C).
"""

from __future__ import annotations

import torch
from torch import Tensor

from indextts2.errors import UsageError


def boolean_mask(mask: Tensor | None, frames: Tensor) -> Tensor | None:
    """Turn a (B, T) mask of ones (real) and zeros (padding) into booleans; None where every frame is real.

    Raises:
        UsageError: the mask does not have the first two axes of `frames`.
    """
    if mask is None:
        return None
    if mask.shape != frames.shape[:2]:
        raise UsageError(f"the mask has shape {tuple(mask.shape)}, the frames (B, T) = {tuple(frames.shape[:2])}")
    keep = mask.to(torch.bool)
    return None if bool(keep.all()) else keep


def zero_masked(x: Tensor, keep: Tensor | None) -> Tensor:
    """Set the frames of `x` (B, T, C) to zero where `keep` (B, T) is false."""
    return x if keep is None else x.masked_fill(~keep.unsqueeze(-1), 0.0)


def check_frames(x: Tensor, channels: int, what: str) -> None:
    """Raise UsageError unless `x` is (B, T >= 1, channels)."""
    if x.ndim != 3 or x.shape[1] < 1 or x.shape[2] != channels:
        raise UsageError(f"{what} must have shape (batch, frames >= 1, {channels}), not {tuple(x.shape)}")
