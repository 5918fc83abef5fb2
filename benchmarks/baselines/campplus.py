"""CAM++ channel by channel: gates computed for every frame, and dense layers joined by concatenation.

B batch, C channels, U frames; everything is (B, C, U), images are (B, C, H, T).
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.layers import convolve
from indextts2.models.speaker.batch_norm import EPS, BatchNorm
from indextts2.models.speaker.campplus import (
    CampPlus,
    ContextAwareMask,
    ConvolutionHead,
    DenseBlock,
    DenseLayer,
    EmbeddingLayer,
    Nonlinear,
    ResidualBlock,
    TimeDelayLayer,
    TransitLayer,
)


class PlainCampPlus:
    """Filter bank (B, T, M) -> style (B, E)."""

    def __init__(self, ours: CampPlus) -> None:
        self.ours = ours

    def __call__(self, fbank: Tensor) -> Tensor:
        layers = self.ours.xvector
        first, last = cast("TimeDelayLayer", layers["tdnn"]), cast("EmbeddingLayer", layers["dense"])
        x = _nonlinear(first.nonlinear, first.linear(_head(self.ours.head, fbank.transpose(1, 2))))
        for index in range(1, layers.num_blocks + 1):
            for layer in cast("DenseBlock", layers[f"block{index}"]).values():
                x = torch.cat([x, _dense(cast("DenseLayer", layer), x)], dim=1)
            transit = cast("TransitLayer", layers[f"transit{index}"])
            x = convolve(transit.linear, _nonlinear(transit.nonlinear, x))
        x = _nonlinear(cast("Nonlinear", layers["out_nonlinear"]), x)
        statistics = torch.cat([x.mean(-1), x.std(-1)], dim=-1)
        return _nonlinear(last.nonlinear, convolve(last.linear, statistics[..., None])).squeeze(-1)


def _head(head: ConvolutionHead, x: Tensor) -> Tensor:
    y = F.relu(_norm(head.bn1, head.conv1(x.unsqueeze(1))))
    for block in (*head.layer1, *head.layer2):
        y = _residual(cast("ResidualBlock", block), y)
    return F.relu(_norm(head.bn2, head.conv2(y))).flatten(1, 2)


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    y = F.relu(_norm(block.bn1, block.conv1(x)))
    for layer in block.shortcut:
        x = _norm(layer, x) if isinstance(layer, BatchNorm) else layer(x)
    return F.relu(_norm(block.bn2, block.conv2(y)) + x)


def _norm(norm: BatchNorm, x: Tensor) -> Tensor:
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=EPS)


def _nonlinear(layer: Nonlinear, x: Tensor) -> Tensor:
    x = _norm(layer.batchnorm, x)
    return F.relu(x) if layer.relu else x


def _dense(layer: DenseLayer, x: Tensor) -> Tensor:
    return _mask(
        layer.cam_layer, _nonlinear(layer.nonlinear2, convolve(layer.linear1, _nonlinear(layer.nonlinear1, x)))
    )


def _mask(layer: ContextAwareMask, x: Tensor) -> Tensor:
    means = F.avg_pool1d(x, layer.segment_frames, layer.segment_frames, ceil_mode=True)
    segments = means[..., None].expand(*means.shape, layer.segment_frames).flatten(2)[..., : x.shape[-1]]
    context = x.mean(-1, keepdim=True) + segments
    gate = torch.sigmoid(convolve(layer.linear2, F.relu(convolve(layer.linear1, context))))
    return nn.Conv1d.forward(layer.linear_local, x) * gate
