"""Batch normalisation without a step counter.

Axes: C channels, the last; any axes before it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.models.dense import Kept

EPS = 1e-5
MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """Normalisation over all axes but the last, C: (..., C) -> (..., C).

    Unlike torch's class it keeps no `num_batches_tracked`: with a fixed momentum nothing reads it, and checkpoints
    may or may not carry it.
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, affine: bool = True) -> None:
        super().__init__()
        self.register_parameter("weight", nn.Parameter(torch.ones(channels)) if affine else None)
        self.register_parameter("bias", nn.Parameter(torch.zeros(channels)) if affine else None)
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self._kept: Kept[tuple[Tensor, Tensor]] = Kept()

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.normalise_batch(x.reshape(-1, x.shape[-1])).view(x.shape)
        scale, shift = self.scale_and_shift()
        return torch.addcmul(shift, x, scale)

    def normalise_batch(self, x: Tensor) -> Tensor:
        """Normalise (N, C, ...) by its own statistics, and update the running ones."""
        self._kept = Kept()  # torch does not count the changes that it makes to the statistics
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, True, MOMENTUM, EPS)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """The map (C), (C) by which the running statistics normalise: x -> x * scale + shift."""
        if torch.is_grad_enabled() or (self.weight is not None and self.weight.requires_grad):
            return self._scale_and_shift()
        return self._kept.get(self.running_var, "map", lambda _: self._scale_and_shift())

    def _scale_and_shift(self) -> tuple[Tensor, Tensor]:
        scale = torch.rsqrt(self.running_var + EPS)
        if self.weight is None or self.bias is None:
            return scale, -self.running_mean * scale
        scale = scale * self.weight
        return scale, torch.addcmul(self.bias, self.running_mean, scale, value=-1)
