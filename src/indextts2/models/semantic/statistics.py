"""Normalisation of semantic features by statistics of the training data.

Axes: B batch, T frames (50 Hz), C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from indextts2.errors import CheckpointError
from indextts2.models.semantic.layers import check_frames


class FeatureStatistics(nn.Module):
    """(x - mean) / sqrt(var) per channel, without an epsilon (spec 05 section 3.2)."""

    UNUSED_KEYS: tuple[str, ...] = ()
    mean: Tensor
    var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))

    @classmethod
    def from_tensors(cls, mean: Tensor, var: Tensor, channels: int) -> FeatureStatistics:
        """Build from the two tensors of `wav2vec2bert_stats.pt`, each (C,).

        Raises:
            CheckpointError: a tensor has another shape, is not finite, or a variance is not above 0.
        """
        for name, value in (("mean", mean), ("var", var)):
            if tuple(value.shape) != (channels,):
                raise CheckpointError(f"statistics: {name} has shape {tuple(value.shape)}, expected ({channels},)")
            if not torch.isfinite(value).all():
                raise CheckpointError(f"statistics: {name} holds NaN or infinity; the file is damaged")
        if not bool((var > 0).all()):
            raise CheckpointError(f"statistics: var must be above 0 everywhere, its least value is {float(var.min())}")
        statistics = cls(channels)
        statistics.load_state_dict({"mean": mean, "var": var})
        return statistics

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise hidden states (B, T, C)."""
        check_frames(hidden, self.mean.shape[0], "hidden states")
        return (hidden - self.mean) / self.var.sqrt()
