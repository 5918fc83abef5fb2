"""Semantic content at the rate of codes -> condition at the rate of mel frames.

Legend: B batch, K content frames (codes), U mel frames, D content features, C condition channels.
Everything stays frame-major, (B,U,C).

Source: the length regulator of Seed-VC (InterpolateRegulator) as IndexTTS2 uses it, spec 07 sections 1 and 2.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import LengthRegulatorConfig
from indextts2.errors import GenerationError
from indextts2.models.convolution import FrameConv, PointwiseConv
from indextts2.models.dense import Linear

KERNEL = 3


def target_mel_frames(code_lengths: Tensor, frames_per_code: float) -> Tensor:
    """Mel frames for (B,) int64 numbers of codes: the product in float32, truncated (spec 07 section 1)."""
    return (code_lengths.to(torch.float32) * frames_per_code).to(torch.int64)


def nearest_indices(lengths: Tensor, target_lengths: Tensor, frames: int) -> Tensor:
    """Source index (B, frames) int64 of every output frame; outputs beyond a target length repeat the last source.

    Every step is taken in float32 (one division, one product, one floor): the exact rational rule differs in
    rare cases. `lengths` and `target_lengths` are (B,) int64.
    """
    ratio = lengths.to(torch.float32) / target_lengths.to(torch.float32)
    position = torch.arange(frames, device=lengths.device, dtype=torch.float32)
    index = torch.floor(position * ratio[:, None]).to(torch.int64)
    return torch.minimum(index, lengths[:, None] - 1)


def whole_group_norm(x: Tensor, norm: nn.GroupNorm, target_lengths: Tensor, mask: Tensor | None) -> Tensor:
    """GroupNorm with one group over (B,U,C), its statistics taken over the valid frames of each item only."""
    if mask is None:
        return torch.addcmul(norm.bias, F.layer_norm(x, x.shape[1:], eps=norm.eps), norm.weight)
    count = (target_lengths * x.shape[2]).to(x.dtype)[:, None, None]
    mean = (x * mask).sum((1, 2), keepdim=True) / count
    centred = (x - mean) * mask
    variance = centred.square().sum((1, 2), keepdim=True) / count
    return centred * torch.rsqrt(variance + norm.eps) * norm.weight + norm.bias


class Mish(nn.Module):
    """x * tanh(softplus(x)), in inference from the sigmoid s: with u = s * (2 - s) that is x * u / (2 - u).

    Torch has a vectorised sigmoid, but takes tanh and softplus of one number after the other.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or not x.is_cpu:
            return F.mish(x)
        s = torch.sigmoid(x)
        u = s.mul_(2 - s)
        return (x * u).div_(2 - u)


class LengthRegulator(nn.Module):
    """Linear projection, nearest-neighbour resize, four convolutions with GroupNorm and Mish, a 1x1 convolution."""

    # The embedding of discrete content, the mask token of training and pitch: never read for continuous content.
    UNUSED_KEYS: tuple[str, ...] = (r"embedding\.weight", r"mask_token", r"f0_.+")

    def __init__(self, config: LengthRegulatorConfig) -> None:
        super().__init__()
        channels = config.channels
        self.content_in_proj = Linear(config.in_channels, channels)
        layers: list[nn.Module] = []
        for _ in config.sampling_ratios:
            layers += [FrameConv(channels, channels, KERNEL), nn.GroupNorm(1, channels), Mish()]
        self.model = nn.Sequential(*layers, PointwiseConv(channels, channels))

    def forward(self, x: Tensor, target_lengths: Tensor | int, lengths: Tensor | None = None) -> Tensor:
        """Resize each item of `x` (B,K,D) to its own number of mel frames.

        Args:
            x: content features; frames at and beyond an item's length are ignored.
            target_lengths: (B,) int64, mel frames per item; a number counts for all items.
            lengths: (B,) int64 valid frames of `x`; None means all.

        Returns:
            (B,U,C) with U the largest target length; frames beyond an item's own target length are zero.

        Raises:
            GenerationError: a length is below 1.
        """
        if isinstance(target_lengths, int):
            target_lengths = torch.full((x.shape[0],), target_lengths, device=x.device)
        if lengths is None:
            lengths = torch.full_like(target_lengths, x.shape[1])
        frames = int(target_lengths.max())
        if int(target_lengths.min()) < 1 or int(lengths.min()) < 1:
            raise GenerationError(
                f"cannot resize {lengths.tolist()} content frames to {target_lengths.tolist()} mel frames: "
                "every length must be at least 1; give a longer text or reference"
            )
        index = nearest_indices(lengths, target_lengths, frames)
        y = self.content_in_proj(x)
        y = torch.gather(y, 1, index[:, :, None].expand(-1, -1, y.shape[-1]))
        mask = self._mask(target_lengths, frames, y.dtype)
        for layer in self.model:
            if isinstance(layer, nn.GroupNorm):
                y = whole_group_norm(y, layer, target_lengths, mask)
            else:
                # Zeros beyond an item's end are what a convolution would have padded with.
                y = layer(y if mask is None else y * mask)
        return y if mask is None else y * mask

    @staticmethod
    def _mask(target_lengths: Tensor, frames: int, dtype: torch.dtype) -> Tensor | None:
        """(B,U,1) of ones and zeros, or None where no item is padded."""
        if bool((target_lengths == frames).all()):
            return None
        position = torch.arange(frames, device=target_lengths.device)
        return (position < target_lengths[:, None]).to(dtype)[..., None]
