"""Batch normalisation without a step counter.

Axes: B batch, C channels; any further axes follow.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-5
MOMENTUM = 0.1


class BatchNorm(nn.Module):
    """Normalisation over all axes but C, for (B, C, T) and (B, C, H, T) alike.

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

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, MOMENTUM, EPS
        )
