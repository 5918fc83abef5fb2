"""Self-attention with relative-key positions (Shaw et al. 2018), clamped to a window, without a T x T gather.

Axes: B batch, T frames, C channels, H heads, D channels of a head, N queries of one block,
R relative distances (left + 1 + right).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.errors import ConfigError
from indextts2.models.dense import Linear

# Queries per block on a CPU: the scores of a block stay in the cache (1.4 times as fast as 15 s of queries at once).
CPU_QUERY_BLOCK = 128


def distance_bias(scores: Tensor, start: int, keys: int, left: int, right: int) -> Tensor:
    """Spread scores per relative distance over the keys.

    Args:
        scores: (..., N, R) of the queries start .. start + N - 1; column d belongs to key - query = d - left.
        start: index of the first query.
        keys: number of keys T.
        left, right: the distances that the first and the last column stand for, and all beyond them.

    Returns:
        (..., N, T): element (i, j) is column clamp(j - (start + i), -left, right) + left of row i.
    """
    rows = scores.shape[-2]
    before, after = start + rows - 1, keys - 1 - start  # the farthest keys that any query of the block has
    lead = scores.shape[:-1]
    # Row by row the scores at the distances -before .. after, and one column of filling.
    line = torch.cat(
        [
            scores[..., :1].expand(*lead, max(0, before - left)),
            scores[..., max(0, left - before) : left + min(right, after) + 1],
            scores[..., -1:].expand(*lead, max(0, after - right) + 1),
        ],
        dim=-1,
    )
    # Rows of length T + N read with a stride of T + N - 1 start one distance earlier each: the Toeplitz layout.
    stride = keys + rows - 1
    flat = line.flatten(-2)[..., rows - 1 : rows - 1 + rows * stride]
    return flat.unflatten(-1, (rows, stride))[..., :keys]


class RelativeKeyAttention(nn.Module):
    """softmax((q_i.k_j + q_i.E[clamp(j - i)]) / sqrt(D)) v_j; one table E for all heads (spec 05 section 3)."""

    def __init__(self, channels: int, heads: int, left: int, right: int) -> None:
        super().__init__()
        if channels % heads:
            raise ConfigError(f"hidden_size {channels} is not a multiple of num_attention_heads {heads}")
        self.heads, self.left, self.right = heads, left, right
        self.linear_q = Linear(channels, channels)
        self.linear_k = Linear(channels, channels)
        self.linear_v = Linear(channels, channels)
        self.linear_out = Linear(channels, channels)
        self.distance_embedding = nn.Embedding(left + right + 1, channels // heads)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Attend within (B, T, C); `keep` (B, T) is false for frames that no query may look at."""
        frames = x.shape[1]
        q, k, v = (self._split_heads(linear(x)) for linear in (self.linear_q, self.linear_k, self.linear_v))
        distance_scores = F.linear(q, self.distance_embedding.weight) * q.shape[-1] ** -0.5
        block = CPU_QUERY_BLOCK if x.device.type == "cpu" else frames
        outputs = []
        for start in range(0, frames, block):
            here = slice(start, start + block)
            bias = distance_bias(distance_scores[:, :, here], start, frames, self.left, self.right)
            if keep is not None:
                # The lowest float, not minus infinity: a row without any key stays finite, as in the reference.
                bias = bias.masked_fill(~keep[:, None, None, :], torch.finfo(bias.dtype).min)
            outputs.append(F.scaled_dot_product_attention(q[:, :, here], k, v, attn_mask=bias))
        return self.linear_out(torch.cat(outputs, dim=2).transpose(1, 2).flatten(2))

    def _split_heads(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, H, T, D)."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
