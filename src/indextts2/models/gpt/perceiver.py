"""Perceiver resampler: a fixed number of learnt queries summarise a sequence (spec 03 section 3).

B batch, T context frames, C context width, N latents, D latent width, H heads, K head width.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.models.dense import Linear


class PerceiverAttention(nn.Module):
    """The latents attend to themselves and the context; no biases, no normalisation before."""

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = Linear(width, heads * head_dim, bias=False)
        self.to_kv = Linear(width, 2 * heads * head_dim, bias=False)
        self.to_out = Linear(heads * head_dim, width, bias=False)

    def forward(self, latents: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        keys_values = self.to_kv(torch.cat((latents, context), dim=1)).chunk(2, dim=-1)
        q, k, v = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.to_q(latents), *keys_values))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.to_out(attended.transpose(1, 2).flatten(2))


class GatedGelu(nn.Module):
    """First half times GELU (erf) of the second half."""

    def forward(self, x: Tensor) -> Tensor:
        value, gate = x.chunk(2, dim=-1)
        return value * F.gelu(gate)


class RootMeanSquareNorm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=-1) * math.sqrt(x.shape[-1]) * self.gamma


class PerceiverResampler(nn.Module):
    """(B, T, C) -> (B, N, D)."""

    def __init__(
        self, context_dim: int, width: int, num_latents: int, *, heads: int, head_dim: int, depth: int, mult: int
    ) -> None:
        super().__init__()
        inner = int(width * mult * 2 / 3)
        self.latents = nn.Parameter(torch.randn(num_latents, width) * 0.02)
        self.proj_context = Linear(context_dim, width)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                (
                    PerceiverAttention(width, heads, head_dim),
                    nn.Sequential(Linear(width, 2 * inner), GatedGelu(), Linear(inner, width)),
                )
            )
            for _ in range(depth)
        )
        self.norm = RootMeanSquareNorm(width)

    def forward(self, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """Summarise `context` (B, T, C); `mask` (B, T) bool is true where a frame is valid."""
        context = self.proj_context(context)
        latents = self.latents.expand(context.shape[0], -1, -1)
        key_mask = None
        if mask is not None:
            key_mask = F.pad(mask, (self.latents.shape[0], 0), value=True)[:, None, None, :]
        for attention, feed_forward in cast("list[nn.ModuleList]", self.layers):
            latents = latents + attention(latents, context, key_mask)
            latents = latents + feed_forward(latents)
        return self.norm(latents)
