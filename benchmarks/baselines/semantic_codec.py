"""The codec's encoder with convolutions channel-first throughout, and the lookup by squared distances.

B batch, T frames, C feature channels, V channels of the backbone, D codebook width.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.layers import convolve, dense
from indextts2.models.semantic.codec import ConvNeXtBlock, SemanticCodec, VocosBackbone


class PlainSemanticCodec:
    """Features (B, T, C) -> ids (B, T) and their embedding (B, T, C)."""

    def __init__(self, ours: SemanticCodec) -> None:
        self.backbone, self.last = cast("VocosBackbone", ours.encoder[0]), ours.encoder[1]
        self.quantizer = ours.vector_quantizer

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        x = self.backbone.embed(features.transpose(1, 2))
        x = self.backbone.norm(x.transpose(1, 2)).transpose(1, 2)
        for block in cast("list[ConvNeXtBlock]", list(self.backbone.convnext)):
            y = block.norm(block.dwconv(x).transpose(1, 2))
            y = block.gamma * dense(block.pwconv2, F.gelu(dense(block.pwconv1, y)))
            x = x + y.transpose(1, 2)
        x = dense(self.last, self.backbone.final_layer_norm(x.transpose(1, 2)))
        indices = self._nearest(convolve(self.quantizer.in_project, x.transpose(1, 2)))
        embedding = F.embedding(indices, self.quantizer.codebook.weight).transpose(1, 2)
        return indices, convolve(self.quantizer.out_project, embedding).transpose(1, 2)

    def _nearest(self, latents: Tensor) -> Tensor:
        """(B, D, T) -> ids (B, T)."""
        rows = F.normalize(latents.transpose(1, 2).flatten(0, 1))
        codes = F.normalize(self.quantizer.codebook.weight)
        distances = rows.square().sum(1, keepdim=True) - 2 * rows @ codes.t() + codes.square().sum(1, keepdim=True).t()
        return (-distances).max(1)[1].view(latents.shape[0], -1)
