"""Projection of GPT latents to content features (`gpt_layer` of the official checkpoint), spec 07 section 1.

Legend: B batch, K codes, D content features.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from indextts2.models.dense import Linear


class LatentProjection(nn.Sequential):
    """`gpt_layer`: linear maps from GPT latents (B,K,latent) to content features (B,K,D), no activation between."""

    UNUSED_KEYS: tuple[str, ...] = ()

    def __init__(self, latent_dim: int, inner_widths: Sequence[int], content_dim: int) -> None:
        widths = [latent_dim, *inner_widths, content_dim]
        super().__init__(*(Linear(i, o) for i, o in itertools.pairwise(widths)))

    @staticmethod
    def inner_widths(state: Mapping[str, Tensor]) -> tuple[int, ...]:
        """Widths between the first input and the last output, from the tensors of a checkpoint."""
        count = sum(1 for key in state if key.endswith(".weight"))
        return tuple(state[f"{i}.weight"].shape[0] for i in range(count - 1))
