"""Transformer of the DiT: adaptive RMS norms, rotary attention, gated feed-forward layers.

Legend: B batch, T frames, Q frames that ask (the last Q of T), H width, N heads, D width of a head,
R rows of a time table (B, or 1 where all items share one time).

Source: DiT (Peebles and Xie, 2023) on a LLaMA-like stack with U-ViT skips (Bao et al., 2023), spec 07 section 5.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.models.dense import Linear, attention, linear, silu_gate

NORM_EPS = 1e-5
ROTARY_BASE = 10000.0
FEED_FORWARD_MULTIPLE = 256


class Rotary(NamedTuple):
    """Cosine and sine of the rotary angles, each (T, D/2)."""

    cosine: Tensor
    sine: Tensor


def rotary_table(frames: int, head_width: int, like: Tensor) -> Rotary:
    """Angles position * base^(-2i/D) for positions 0..frames-1, computed in float32, in the type of `like`."""
    exponent = torch.arange(0, head_width, 2, device=like.device, dtype=torch.float32) / head_width
    position = torch.arange(frames, device=like.device, dtype=torch.float32)
    angle = torch.outer(position, 1.0 / ROTARY_BASE**exponent)
    return Rotary(angle.cos().to(like.dtype), angle.sin().to(like.dtype))


def rotate(x: Tensor, rotary: Rotary) -> Tensor:
    """Rotate neighbouring pairs of (B,T,N,D) by the angle of their frame."""
    if x.dtype is torch.float32 and not torch.is_grad_enabled():
        # As complex numbers in one pass.
        turns = torch.complex(rotary.cosine, rotary.sine)[:, None]
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * turns).flatten(-2)
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    cosine, sine = rotary.cosine[:, None], rotary.sine[:, None]
    return torch.stack((even * cosine - odd * sine, odd * cosine + even * sine), dim=-1).flatten(-2)


class AdaptiveNorm(nn.Module):
    """RMS norm whose gain and offset come from the time embedding."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_layer = Linear(width, 2 * width)
        self.norm = nn.RMSNorm(width, eps=NORM_EPS)

    def table(self, time_embedding: Tensor) -> Tensor:
        """(R,H) -> gain and offset (R,2,H); the learned gain of the norm is multiplied in."""
        gain, offset = self.project_layer(time_embedding).chunk(2, dim=-1)
        return torch.stack((gain * self.norm.weight, offset), dim=1)

    def forward(self, x: Tensor, table: Tensor) -> Tensor:
        """Normalise (B,T,H) with a table (R,2,H)."""
        normalised = F.rms_norm(x, x.shape[-1:], eps=NORM_EPS)
        return torch.addcmul(table[:, 1:], normalised, table[:, :1])


class Attention(nn.Module):
    """Bidirectional self-attention without biases."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.wqkv = Linear(width, 3 * width, bias=False)
        self.wo = Linear(width, width, bias=False)

    def forward(self, x: Tensor, rotary: Rotary, key_mask: Tensor | None, first_query: int) -> Tensor:
        """(B,T,H) -> (B,Q,H), Q = T - `first_query`; `key_mask` (B,1,1,T) is true where a frame may be seen."""
        width = x.shape[-1]
        if first_query:
            query = linear(x[:, first_query:], self.wqkv.weight[:width])
            key, value = linear(x, self.wqkv.weight[width:]).split(width, dim=-1)
        else:
            query, key, value = self.wqkv(x).split(width, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)) for part in (query, key, value))
        query = rotate(query, Rotary(*(table[first_query:] for table in rotary)))
        key = rotate(key, rotary)
        return self.wo(attention(query, key, value, key_mask).flatten(-2))


class FeedForward(nn.Module):
    """w2(SiLU(w1 x) * w3 x) without biases."""

    def __init__(self, width: int) -> None:
        super().__init__()
        inner = 2 * 4 * width // 3
        inner += -inner % FEED_FORWARD_MULTIPLE
        self.w1 = Linear(width, inner, bias=False)
        self.w3 = Linear(width, inner, bias=False)
        self.w2 = Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(silu_gate(self.w1(x), self.w3(x)))


class TransformerLayer(nn.Module):
    """One layer; layers of the second half join the output of their partner in the first half to their input."""

    def __init__(self, width: int, heads: int, takes_skip: bool) -> None:
        super().__init__()
        self.attention = Attention(width, heads)
        self.feed_forward = FeedForward(width)
        self.attention_norm = AdaptiveNorm(width)
        self.ffn_norm = AdaptiveNorm(width)
        self.skip_in_linear = Linear(2 * width, width) if takes_skip else None

    def forward(
        self,
        h: Tensor,
        skip: Tensor | None,
        tables: tuple[Tensor, Tensor],
        rotary: Rotary,
        key_mask: Tensor | None,
        first_query: int = 0,
    ) -> Tensor:
        """(B,T,H) -> (B,Q,H); `tables` (R,2,H) of the two norms."""
        if self.skip_in_linear is not None and skip is not None:
            h = self.skip_in_linear(torch.cat((h, skip), dim=-1))
        y = self.attention_norm(h, tables[0])
        h = h[:, first_query:] + self.attention(y, rotary, key_mask, first_query)
        return h + self.feed_forward(self.ffn_norm(h, tables[1]))


class Transformer(nn.Module):
    """Stack of layers with last-in first-out skips, and a final adaptive norm.

    With depth n, layers below n//2 leave their output for a partner; layers above n//2 take one.
    """

    def __init__(self, width: int, heads: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TransformerLayer(width, heads, self.takes_skip(i, depth)) for i in range(depth))
        self.norm = AdaptiveNorm(width)

    @staticmethod
    def takes_skip(layer: int, depth: int) -> bool:
        return layer > depth // 2

    def tables(self, time_embedding: Tensor) -> Tensor:
        """(R,H) -> tables of all norms (R, 2*depth+1, 2, H)."""
        layers = cast("list[TransformerLayer]", list(self.layers))
        norms = [norm for layer in layers for norm in (layer.attention_norm, layer.ffn_norm)]
        return torch.stack([norm.table(time_embedding) for norm in (*norms, self.norm)], dim=1)

    def forward(
        self, h: Tensor, tables: Tensor, rotary: Rotary, key_mask: Tensor | None, first_frame: int = 0
    ) -> Tensor:
        """(B,T,H) -> (B, T-first_frame, H): the last layer answers only the frames that are wanted."""
        skips: list[Tensor] = []
        depth = len(self.layers)
        for i, layer in enumerate(self.layers):
            skip = skips.pop() if self.takes_skip(i, depth) else None
            first_query = first_frame if i == depth - 1 else 0
            h = layer(h, skip, (tables[:, 2 * i], tables[:, 2 * i + 1]), rotary, key_mask, first_query)
            if i < depth // 2:
                skips.append(h)
        return self.norm(h, tables[:, -1])
