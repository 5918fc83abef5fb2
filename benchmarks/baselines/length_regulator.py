"""The length regulator with `interpolate` and a mask of ones.

B batch, K codes, U mel frames, D content features, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.layers import dense
from indextts2.models.s2mel.length_regulator import LengthRegulator


class PlainLengthRegulator:
    """Content (B, K, D) -> condition (B, U, C)."""

    def __init__(self, ours: LengthRegulator) -> None:
        self.ours = ours

    def __call__(self, x: Tensor, frames: int) -> Tensor:
        lengths = torch.full((x.shape[0],), frames, device=x.device)
        mask = (torch.arange(frames, device=x.device) < lengths[:, None])[..., None]
        y = dense(self.ours.content_in_proj, x).transpose(1, 2).contiguous()
        y = F.interpolate(y, size=frames, mode="nearest")
        for layer in self.ours.model:
            if isinstance(layer, nn.Conv1d):
                y = nn.Conv1d.forward(layer, y)
            else:
                y = layer(y) if isinstance(layer, nn.GroupNorm) else F.mish(y)
        return y.transpose(1, 2).contiguous() * mask
