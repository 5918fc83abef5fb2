"""w2v-BERT as a plain encoder: all layers, all hidden states kept, positions gathered for every pair of frames.

B batch, T frames, C channels, H heads, D head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.layers import convolve, dense, join_heads, split_heads
from indextts2.models.semantic.relative_attention import RelativeKeyAttention
from indextts2.models.semantic.w2v_bert import ConformerLayer, ConvolutionModule, FeedForward, W2VBert


class PlainW2VBert:
    """Runs every layer that the configuration has and picks one hidden state.

    Our module holds only the layers that are needed; the values behind the last one do not reach the result, so its
    weights stand in for theirs.
    """

    def __init__(self, ours: W2VBert) -> None:
        self.ours = ours
        held = list(ours.encoder.layers)
        self.wanted = len(held)
        self.layers = [held[index % len(held)] for index in range(ours.config.num_hidden_layers)]

    def __call__(self, features: Tensor, mask: Tensor) -> Tensor:
        """(B, T, F) and (B, T) of ones -> the hidden state that our module gives (B, T, C)."""
        projection = self.ours.feature_projection
        x = dense(projection.projection, projection.layer_norm(features)).masked_fill(~mask.bool()[..., None], 0.0)
        keys = (1.0 - mask.to(x.dtype))[:, None, None, :] * torch.finfo(x.dtype).min
        keys = keys.expand(-1, 1, x.shape[1], -1)
        states = [x]
        for layer in self.layers:
            assert isinstance(layer, ConformerLayer)
            states.append(_layer(layer, states[-1], mask, keys))
        return states[self.wanted]


def _layer(layer: ConformerLayer, x: Tensor, mask: Tensor, keys: Tensor) -> Tensor:
    x = x + 0.5 * _feed_forward(layer.ffn1, layer.ffn1_layer_norm(x))
    x = x + _attention(layer.self_attn, layer.self_attn_layer_norm(x), keys)
    x = x + _convolution(layer.conv_module, x, mask)
    x = x + 0.5 * _feed_forward(layer.ffn2, layer.ffn2_layer_norm(x))
    return layer.final_layer_norm(x)


def _feed_forward(feed_forward: FeedForward, x: Tensor) -> Tensor:
    return dense(feed_forward.output_dense, F.silu(dense(feed_forward.intermediate_dense, x)))


def _attention(attention: RelativeKeyAttention, x: Tensor, keys: Tensor) -> Tensor:
    linears = (attention.linear_q, attention.linear_k, attention.linear_v)
    q, k, v = (split_heads(dense(linear, x), attention.heads) for linear in linears)
    scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
    index = torch.arange(x.shape[1], device=x.device)
    distance = (index - index[:, None]).clamp(-attention.left, attention.right) + attention.left
    positions = attention.distance_embedding(distance)  # (T, T, D)
    scores = scores + torch.einsum("bhld,lrd->bhlr", q, positions) / math.sqrt(q.shape[-1]) + keys
    return dense(attention.linear_out, join_heads(scores.softmax(dim=-1) @ v))


def _convolution(module: ConvolutionModule, x: Tensor, mask: Tensor) -> Tensor:
    x = module.layer_norm(x).masked_fill(~mask.bool()[..., None], 0.0).transpose(1, 2)
    x = F.glu(convolve(module.pointwise_conv1, x), dim=1)
    x = module.depthwise_conv(F.pad(x, (module.depthwise_conv.kernel_size[0] - 1, 0)))
    x = module.depthwise_layer_norm(x.transpose(1, 2)).transpose(1, 2)
    return convolve(module.pointwise_conv2, F.silu(x)).transpose(1, 2)
