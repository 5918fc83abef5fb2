"""Weight norm, folded: W = g v / ||v||, the norm over all axes but the first (Salimans & Kingma 2016).

For ConvTranspose1d the first axis is the input channel, so the norm is taken per input channel, as the official
checkpoints are stored (spec 08 section 4).
"""

from __future__ import annotations

import torch

# Stored name of the magnitude and of the direction, in the older and in the newer form of torch's weight norm.
SUFFIXES = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def fold(magnitude: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
    """`magnitude` (C, 1, ...) and `direction` (C, ...) -> weight (C, ...), computed and returned in float32."""
    g, v = magnitude.float(), direction.float()
    norm = torch.linalg.vector_norm(v, dim=tuple(range(1, v.dim())), keepdim=True)
    return v * (g / norm)


def magnitude_shape(direction_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape that the magnitude of a direction of this shape must have."""
    return (direction_shape[0], *(1 for _ in direction_shape[1:]))
