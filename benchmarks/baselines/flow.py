"""The flow as a plain reading of DiT, Seed-VC and WaveNet: everything of every frame in every step.

The network sees state, prompt, condition and style concatenated, embeds the time, builds its masks and rotary table
in each call. The sampler runs it on a batch of both branches of the guidance, prompt frames included.

B batch, M mel bands, P prompt frames, T frames in all, H width, W WaveNet width, N heads, D head width.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.layers import convolve, dense, join_heads
from indextts2.models.s2mel.dit import FINAL_NORM_EPS, TIME_FEATURES, TIME_PERIOD, TIME_SCALE, DiT, TimestepEmbedder
from indextts2.models.s2mel.transformer import (
    NORM_EPS,
    AdaptiveNorm,
    Attention,
    FeedForward,
    Transformer,
    TransformerLayer,
    rotary_table,
)
from indextts2.models.s2mel.wavenet import WaveNet


class PlainDiT:
    """Velocity of all frames (B, M, T)."""

    def __init__(self, ours: DiT) -> None:
        self.ours = ours

    def __call__(self, x: Tensor, prompt: Tensor, t: Tensor, style: Tensor, mu: Tensor) -> Tensor:
        """x, prompt (B, M, T), t (B,), style (B, S), mu (B, T, C)."""
        ours, frames = self.ours, x.shape[-1]
        time = _embed_time(ours.t_embedder, t)
        x, prompt = x.transpose(1, 2), prompt.transpose(1, 2)
        styles = style[:, None].repeat(1, frames, 1)
        content = dense(ours.cond_projection, mu)
        h = dense(ours.cond_x_merge_linear, torch.cat((x, prompt, content, styles), dim=-1))
        lengths = torch.full((x.shape[0],), frames, device=x.device)
        seen = torch.arange(frames, device=x.device) < lengths[:, None]
        mask = seen[:, None, None, :].repeat(1, 1, frames, 1)
        h = _transformer(ours.transformer, h, time[:, None], mask, ours.config.dit.num_heads)
        r = dense(ours.skip_linear, torch.cat((h, x), dim=-1))
        v, gate_time = dense(ours.conv1, r).transpose(1, 2), _embed_time(ours.t_embedder2, t)[..., None]
        v = _wavenet(ours.wavenet, v, seen[:, None].to(v.dtype), gate_time).transpose(1, 2)
        v = v + dense(ours.res_projection, r)
        shift, scale = dense(ours.final_layer.adaLN_modulation[1], F.silu(time)).chunk(2, dim=1)
        v = F.layer_norm(v, v.shape[-1:], eps=FINAL_NORM_EPS) * (1 + scale[:, None]) + shift[:, None]
        return convolve(ours.conv2, dense(ours.final_layer.linear, v).transpose(1, 2))


def _embed_time(embedder: TimestepEmbedder, t: Tensor) -> Tensor:
    """(B,) -> (B, H)."""
    half = TIME_FEATURES // 2
    rates = torch.exp(-math.log(TIME_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = TIME_SCALE * t[:, None] * rates
    features = torch.cat((angles.cos(), angles.sin()), dim=-1)
    return dense(embedder.mlp[2], F.silu(dense(embedder.mlp[0], features)))


def _transformer(transformer: Transformer, h: Tensor, time: Tensor, mask: Tensor, heads: int) -> Tensor:
    """(B, T, H) -> (B, T, H)."""
    rotary = rotary_table(h.shape[1], h.shape[-1] // heads, h)
    angles = torch.stack(rotary, dim=-1)
    skips: list[Tensor] = []
    depth = len(transformer.layers)
    for index, layer in enumerate(cast("list[TransformerLayer]", list(transformer.layers))):
        if layer.skip_in_linear is not None:
            h = dense(layer.skip_in_linear, torch.cat((h, skips.pop()), dim=-1))
        h = h + _attend(layer.attention, _norm(layer.attention_norm, h, time), angles, mask)
        h = h + _feed_forward(layer.feed_forward, _norm(layer.ffn_norm, h, time))
        if index < depth // 2:
            skips.append(h)
    return _norm(transformer.norm, h, time)


def _norm(norm: AdaptiveNorm, x: Tensor, time: Tensor) -> Tensor:
    gain, offset = dense(norm.project_layer, time).chunk(2, dim=-1)
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + NORM_EPS)
    return gain * ((x.float() * scale).type_as(x) * norm.norm.weight) + offset


def _attend(attention: Attention, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
    q, k, v = (part.unflatten(-1, (attention.heads, -1)) for part in dense(attention.wqkv, x).chunk(3, dim=-1))
    q, k, v = (part.transpose(1, 2) for part in (_rotate(q, angles), _rotate(k, angles), v))
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return dense(attention.wo, join_heads(y))


def _feed_forward(feed_forward: FeedForward, x: Tensor) -> Tensor:
    return dense(feed_forward.w2, F.silu(dense(feed_forward.w1, x)) * dense(feed_forward.w3, x))


def _rotate(x: Tensor, angles: Tensor) -> Tensor:
    """(B, T, N, D) with `angles` (T, D / 2, 2)."""
    pairs, angles = x.float().unflatten(-1, (-1, 2)), angles[None, :, None]
    even = pairs[..., 0] * angles[..., 0] - pairs[..., 1] * angles[..., 1]
    odd = pairs[..., 1] * angles[..., 0] + pairs[..., 0] * angles[..., 1]
    return torch.stack((even, odd), dim=-1).flatten(3).type_as(x)


def _wavenet(wavenet: WaveNet, y: Tensor, mask: Tensor, time: Tensor) -> Tensor:
    """(B, W, T) -> (B, W, T); `time` (B, W, 1)."""
    channels = y.shape[1]
    output = torch.zeros_like(y)
    offsets = convolve(wavenet.cond_layer, time)
    for index, (gate, mix) in enumerate(wavenet._layers()):
        pad = wavenet.half_kernel * wavenet.dilations[index]
        a = F.conv1d(F.pad(y, (pad, pad), "reflect"), gate.weight, gate.bias, dilation=wavenet.dilations[index])
        a = a + offsets[:, index * 2 * channels : (index + 1) * 2 * channels]
        s = convolve(mix, torch.tanh(a[:, :channels]) * torch.sigmoid(a[:, channels:]))
        if s.shape[1] > channels:
            y = (y + s[:, :channels]) * mask
        output = output + s[:, -channels:]
    return output * mask


def sample(
    dit: PlainDiT, mu: Tensor, prompt_mel: Tensor, style: Tensor, noise: Tensor, steps: int, cfg_rate: float
) -> Tensor:
    """Mel (B, M, T - P) by Euler steps with guidance."""
    x = noise.clone()
    prompt_frames = prompt_mel.shape[-1]
    prompt = torch.zeros_like(x)
    prompt[..., :prompt_frames] = prompt_mel
    x[..., :prompt_frames] = 0
    times = torch.linspace(0, 1, steps + 1)
    for t, end in itertools.pairwise(times):
        x = x + (end - t) * guided(dit, x, prompt, t, style, mu, cfg_rate)
        x[..., :prompt_frames] = 0
    return x[..., prompt_frames:]


def guided(dit: PlainDiT, x: Tensor, prompt: Tensor, t: Tensor, style: Tensor, mu: Tensor, cfg_rate: float) -> Tensor:
    """Velocity (B, M, T) with guidance, both branches in one batch."""
    both = [torch.cat((part, torch.zeros_like(part))) for part in (prompt, style, mu)]
    velocity = dit(torch.cat((x, x)), both[0], t.expand(2 * len(x)), both[1], both[2])
    with_condition, without = velocity.chunk(2)
    return (1.0 + cfg_rate) * with_condition - cfg_rate * without
