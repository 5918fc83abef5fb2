"""GPT-2 stack (spec 03 section 6): a parallel pass for training, and one that extends key-value caches.

B batch, T positions, D width, H heads, K = D / H, N rows of all requests in a step, R rows in a cache.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.models.dense import Kept, linear
from indextts2.models.gpt.cache import KVCache, Lane
from indextts2.models.gpt.quantised import MOST_ROWS, RoundedWeight, rounded
from indextts2.native.attention import attend_rows, attends

LAYER_NORM_EPS = 1e-5
INIT_STD = 0.02
Attend = Callable[[int, Tensor], Tensor]
"""Attention of new rows: the layer and their queries, keys and values (N, 3 D) -> (N, D)."""


class Conv1D(nn.Module):
    """Linear layer that keeps its weight as (in, out), the orientation of GPT-2 checkpoints."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs) * INIT_STD)
        self.bias = nn.Parameter(torch.zeros(outputs))
        self._rounded: Kept[RoundedWeight] = Kept()

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.t(), self.bias)

    def step(self, x: Tensor, weights: str) -> Tensor:
        """The layer without gradients on rows (N, in), with its weight in the kind `weights` if they are few."""
        if weights == "full" or x.shape[0] > MOST_ROWS:
            return self(x)
        return self._rounded.get(self.weight, weights, lambda weight: rounded(weight.t(), weights))(x, self.bias)


class CausalSelfAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = width
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Causal attention within `x` (B, T, D)."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1))
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(attended.transpose(1, 2).flatten(2))

    def extend(self, x: Tensor, attend: Attend, layer: int, weights: str) -> Tensor:
        """Attention of new rows `x` (N, D) over what is cached of this layer, which they are added to."""
        return self.c_proj.step(attend(layer, self.c_attn.step(x, weights)), weights)


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))

    def step(self, x: Tensor, weights: str) -> Tensor:
        """On rows (N, D), see `Conv1D.step`."""
        return self.c_proj.step(F.gelu(self.c_fc.step(x, weights), approximate="tanh"), weights)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.attn = CausalSelfAttention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mlp = FeedForward(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def extend(self, x: Tensor, attend: Attend, layer: int, weights: str) -> Tensor:
        """Run new rows (N, D), see `GPT2Stack.run`."""
        x = x + self.attn.extend(self.ln_1(x), attend, layer, weights)
        return x + self.mlp.step(self.ln_2(x), weights)


class GPT2Stack(nn.Module):
    """Blocks and the closing norm; no token or position tables."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.head_dim = width // heads
        self.heads = heads
        self.h = nn.ModuleList(TransformerBlock(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Causal pass over embeddings (B, T, D); padding belongs at the end."""
        for block in self.h:
            x = block(x)
        return self.ln_f(x)

    def new_cache(self, capacity: int) -> KVCache:
        """An empty cache with room for `capacity` rows, on the device and in the precision of the weights."""
        return KVCache.empty(len(self.h), self.heads, self.head_dim, capacity, like=self.ln_f.weight)

    def extend(self, x: Tensor, lanes: Sequence[Lane], weights: str = "full") -> Tensor:
        """Run new rows `x` (N, D), those of the first lane first, and append them to the caches. Returns (N, D).

        `weights`: as they are ("full"), or rounded copies of them for a few rows (see `quantised`).

        Dense layers see the rows of all requests at once; only attention goes request by request.
        """
        for lane in lanes:
            lane.cache.reserve(lane.rows)
        x = self.run(x, functools.partial(_attend_lanes, lanes, self.heads), weights)
        for lane in lanes:
            lane.cache.advance(lane.rows)
        return x

    def run(self, x: Tensor, attend: Attend, weights: str = "full") -> Tensor:
        """All blocks on new rows (N, D), whose attention is left to `attend`. Returns (N, D)."""
        for layer, block in enumerate(cast("list[TransformerBlock]", self.h)):
            x = block.extend(x, attend, layer, weights)
        return self.ln_f(x)


def _attend_lanes(lanes: Sequence[Lane], heads: int, layer: int, qkv: Tensor) -> Tensor:
    """Attention of the rows of every lane over its own cache."""
    if len(lanes) == 1:
        return _attend_lane(lanes[0], heads, layer, qkv)
    parts = qkv.split([lane.rows for lane in lanes])
    return torch.cat([_attend_lane(lane, heads, layer, part) for part, lane in zip(parts, lanes, strict=True)])


def _attend_lane(lane: Lane, heads: int, layer: int, qkv: Tensor) -> Tensor:
    if not lane.causal and attends(qkv, lane.cache.keys[layer]):
        cache = lane.cache
        return attend_rows(qkv, cache.keys[layer], cache.values[layer], cache.length, lane.mask)
    q, k, v = qkv.view(1, lane.rows, 3, heads, -1).permute(2, 0, 3, 1, 4)
    keys, values = lane.cache.append(layer, k, v)
    attended = F.scaled_dot_product_attention(q, keys, values, attn_mask=lane.mask, is_causal=lane.causal)
    return attended.transpose(1, 2).reshape(lane.rows, -1)
