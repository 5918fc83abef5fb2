"""CAM++ with gates computed for every frame, and dense layers joined by concatenation.

B batch, C channels, U frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.models.speaker.campplus import CampPlus, ContextAwareMask, DenseBlock, DenseLayer, statistics_pooling


class PlainCampPlus:
    """Filter bank (B, T, M) -> style (B, E)."""

    def __init__(self, ours: CampPlus) -> None:
        self.ours = ours

    def __call__(self, fbank: Tensor) -> Tensor:
        layers = self.ours.xvector
        x = layers["tdnn"](self.ours.head(fbank.transpose(1, 2)))
        for index in range(1, layers.num_blocks + 1):
            block = layers[f"block{index}"]
            assert isinstance(block, DenseBlock)
            for layer in block.values():
                assert isinstance(layer, DenseLayer)
                x = torch.cat([x, _dense(layer, x)], dim=1)
            x = layers[f"transit{index}"](x)
        return layers["dense"](statistics_pooling(layers["out_nonlinear"](x)))


def _dense(layer: DenseLayer, x: Tensor) -> Tensor:
    return _mask(layer.cam_layer, layer.nonlinear2(layer.linear1(layer.nonlinear1(x))))


def _mask(layer: ContextAwareMask, x: Tensor) -> Tensor:
    means = F.avg_pool1d(x, layer.segment_frames, layer.segment_frames, ceil_mode=True)
    segments = means[..., None].expand(*means.shape, layer.segment_frames).flatten(2)[..., : x.shape[-1]]
    context = x.mean(-1, keepdim=True) + segments
    gate = torch.sigmoid(layer.linear2(F.relu(layer.linear1(context))))
    return layer.linear_local(x) * gate
