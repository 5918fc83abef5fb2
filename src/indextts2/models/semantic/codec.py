"""Semantic codec: features of w2v-BERT to discrete codes and back to features.

Axes: B batch, T frames (50 Hz), M codes, C feature channels, V channels of the ConvNeXt backbone.
Source: MaskGCT's RepCodec without down-sampling and with one quantiser; backbone of Vocos (Siuzdak 2023);
spec 05 section 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import SemanticCodecConfig
from indextts2.models.dense import Linear
from indextts2.models.semantic.layers import boolean_mask, check_frames, zero_masked
from indextts2.models.semantic.quantizer import FactorizedVectorQuantizer, QuantizerTraining, ResidualQuantizer

KERNEL = 7
LAYER_NORM_EPS = 1e-6


def convolve_frames(convolution: nn.Conv1d, x: Tensor, keep: Tensor | None) -> Tensor:
    """Apply a convolution along T to (B, T, C); frames outside of `keep` count as the zeros beyond the edge."""
    return convolution(zero_masked(x, keep).transpose(1, 2)).transpose(1, 2)


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution, LayerNorm, two linear maps with GELU, a scaled residual; (B, T, V) throughout."""

    def __init__(self, channels: int, intermediate: int, layer_scale: float) -> None:
        super().__init__()
        self.dwconv = nn.Conv1d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.pwconv1 = Linear(channels, intermediate)
        self.pwconv2 = Linear(intermediate, channels)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        y = self.norm(convolve_frames(self.dwconv, x, keep))
        return x + self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))


class VocosBackbone(nn.Module):
    """Convolution C -> V, LayerNorm, ConvNeXt blocks, LayerNorm."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        channels, layers = config.vocos_dim, config.vocos_num_layers
        self.embed = nn.Conv1d(config.hidden_size, channels, KERNEL, padding=KERNEL // 2)
        self.norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)
        self.convnext = nn.ModuleList(
            ConvNeXtBlock(channels, config.vocos_intermediate_dim, layer_scale=1 / layers) for _ in range(layers)
        )
        self.final_layer_norm = nn.LayerNorm(channels, eps=LAYER_NORM_EPS)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.norm(convolve_frames(self.embed, x, keep))
        for block in self.convnext:
            x = block(x, keep)
        return self.final_layer_norm(x)


class SemanticCodecEncoder(nn.Sequential):
    """Backbone and a linear map back to C; (B, T, C) -> (B, T, C), every frame sees 39 on either side at full size."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__(VocosBackbone(config), Linear(config.vocos_dim, config.hidden_size))
        self.channels = config.hidden_size

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` (B, T), 1 for real frames: padding then acts as the zeros beyond the end of a single sequence."""
        check_frames(features, self.channels, "semantic features")
        return self[1](self[0](features, boolean_mask(mask, features)))


class SemanticCodecDecoder(SemanticCodecEncoder):
    """Reconstructs the features from the codec's embeddings; the mirror of the encoder, for training only."""


class SemanticCodec(nn.Module):
    """Encoder and quantiser of the semantic codec. The decoder's weights are dropped: inference never runs it."""

    UNUSED_KEYS: tuple[str, ...] = (r"decoder\..+",)

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = SemanticCodecEncoder(config)
        self.quantizer = ResidualQuantizer(config)

    @property
    def vector_quantizer(self) -> FactorizedVectorQuantizer:
        """The one quantiser."""
        quantizer = self.quantizer.quantizers[0]
        assert isinstance(quantizer, FactorizedVectorQuantizer)
        return quantizer

    def encode(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode normalised features (B, T, C) to (B, T, C) before quantisation; `mask` (B, T) as in the encoder."""
        return self.encoder(features, mask)

    def quantize(self, features: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode and quantise normalised features (B, T, C).

        Returns:
            Code ids (B, T) int64 and their embedding (B, T, C), the prompt's `S_ref` of the reference.
        """
        return self.vector_quantizer(self.encode(features, mask))

    def embed(self, codes: Tensor) -> Tensor:
        """Embedding (B, M, C) of code ids (B, M); the reference's `vq2emb`.

        Raises:
            GenerationError: an id lies outside of the codebook, as the start and stop tokens of the GPT do.
        """
        self.vector_quantizer.check_range(codes)
        return self.vector_quantizer.embed(codes)

    def quantize_with_losses(self, features: Tensor, mask: Tensor | None = None) -> QuantizerTraining:
        """Like `quantize`, with a straight-through gradient and the quantiser's losses."""
        return self.vector_quantizer.forward_with_losses(self.encode(features, mask), boolean_mask(mask, features))
