"""The conditioning encoders: conformer with both score matrices and masks, perceiver with explicit products.

B batch, T frames, D width, H heads, N latents.
"""

from __future__ import annotations

import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.layers import convolve, dense, join_heads, split_heads
from indextts2.models.gpt.conformer import (
    ConformerBlock,
    ConformerEncoder,
    ConvModule,
    PositionAttention,
    sinusoidal_positions,
)
from indextts2.models.gpt.perceiver import PerceiverAttention, PerceiverResampler
from indextts2.models.gpt.unified_voice import UnifiedVoice


class PlainConditioners:
    """Semantic features (B, T, C) -> speaker latents (B, N, D) and emotion vectors (B, D)."""

    def __init__(self, ours: UnifiedVoice) -> None:
        self.ours = ours

    def speaker_latents(self, features: Tensor) -> Tensor:
        encoded, mask = _encode(self.ours.conditioning_encoder, features)
        return _resample(self.ours.perceiver_encoder, encoded, mask)

    def emotion_vector(self, features: Tensor) -> Tensor:
        encoded, mask = _encode(self.ours.emo_conditioning_encoder, features)
        latent = _resample(self.ours.emo_perceiver_encoder, encoded, mask).squeeze(1)
        return dense(self.ours.emo_layer, dense(self.ours.emovec_layer, latent))


def _encode(encoder: ConformerEncoder, features: Tensor) -> tuple[Tensor, Tensor]:
    mask = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)[:, 2::2]
    image = encoder.embed.conv(features[:, None])
    x = dense(encoder.embed.out[0], image.transpose(1, 2).flatten(2)) * math.sqrt(encoder.width)
    positions = sinusoidal_positions(x.shape[1], encoder.width, x.device)
    for block in encoder.encoders:
        assert isinstance(block, ConformerBlock)
        x = x + _attend(block.self_attn, block.norm_mha(x), positions, mask)
        x = x + _convolve(block.conv_module, block.norm_conv(x), mask)
        inner = F.silu(dense(block.feed_forward.w_1, block.norm_ff(x)))
        x = block.norm_final(x + dense(block.feed_forward.w_2, inner))
    return encoder.after_norm(x), mask


def _attend(attention: PositionAttention, x: Tensor, positions: Tensor, mask: Tensor) -> Tensor:
    linears = (attention.linear_q, attention.linear_k, attention.linear_v)
    q, k, v = (split_heads(dense(linear, x), attention.heads) for linear in linears)
    p = split_heads(dense(attention.linear_pos, positions[None]), attention.heads)
    content = (q + attention.pos_bias_u[:, None]) @ k.transpose(-2, -1)
    position = (q + attention.pos_bias_v[:, None]) @ p.transpose(-2, -1)
    scores = (content + position) / math.sqrt(q.shape[-1])
    hidden = ~mask[:, None, None]
    weights = scores.masked_fill(hidden, -float("inf")).softmax(dim=-1).masked_fill(hidden, 0.0)
    return dense(attention.linear_out, join_heads(weights @ v))


def _convolve(module: ConvModule, x: Tensor, mask: Tensor) -> Tensor:
    x = x.transpose(1, 2).masked_fill(~mask[:, None], 0.0)
    x = module.depthwise_conv(F.glu(convolve(module.pointwise_conv1, x), dim=1))
    x = F.silu(module.norm(x.transpose(1, 2))).transpose(1, 2)
    return convolve(module.pointwise_conv2, x).masked_fill(~mask[:, None], 0.0).transpose(1, 2)


def _resample(resampler: PerceiverResampler, context: Tensor, mask: Tensor) -> Tensor:
    context = dense(resampler.proj_context, context)
    latents = resampler.latents.expand(context.shape[0], -1, -1)
    keys = F.pad(mask, (latents.shape[1], 0), value=True)
    for attention, feed_forward in cast("list[nn.ModuleList]", list(resampler.layers)):
        assert isinstance(attention, PerceiverAttention)
        latents = latents + _cross(attention, latents, context, keys)
        assert isinstance(feed_forward, nn.Sequential)
        latents = latents + dense(feed_forward[2], feed_forward[1](dense(feed_forward[0], latents)))
    return resampler.norm(latents)


def _cross(attention: PerceiverAttention, latents: Tensor, context: Tensor, keys: Tensor) -> Tensor:
    context = torch.cat((latents, context), dim=1)
    k, v = (split_heads(part, attention.heads) for part in dense(attention.to_kv, context).chunk(2, dim=-1))
    q = split_heads(dense(attention.to_q, latents), attention.heads)
    scores = torch.einsum("bhid,bhjd->bhij", q, k) * k.shape[-1] ** -0.5
    weights = scores.masked_fill(~keys[:, None, None], -torch.finfo(scores.dtype).max).softmax(dim=-1)
    return dense(attention.to_out, join_heads(torch.einsum("bhij,bhjd->bhid", weights, v)))
