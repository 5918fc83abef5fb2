"""w2v-BERT 2.0: a Conformer encoder that turns stacked filter banks into semantic features.

Axes: B batch, T frames (50 Hz), F = 2 stacked frames of mel bins, C hidden channels, K kernel of the
depthwise convolution. Source: transformers' Wav2Vec2BertModel without adapter; spec 05 section 3.
Only the layers that are asked for exist: IndexTTS2 reads the output of 17 of the 24.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import W2VBertConfig
from indextts2.errors import ConfigError
from indextts2.models.convolution import PointwiseConv
from indextts2.models.dense import Linear
from indextts2.models.semantic.layers import boolean_mask, check_frames, zero_masked
from indextts2.models.semantic.relative_attention import RelativeKeyAttention


class FeatureProjection(nn.Module):
    """LayerNorm and a linear map: (B, T, F) -> (B, T, C)."""

    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()
        self.layer_norm = nn.LayerNorm(config.feature_projection_input_dim, eps=config.layer_norm_eps)
        self.projection = Linear(config.feature_projection_input_dim, config.hidden_size)

    def forward(self, features: Tensor) -> Tensor:
        return self.projection(self.layer_norm(features))


class FeedForward(nn.Module):
    """Linear, SiLU, linear on (B, T, C)."""

    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()
        self.intermediate_dense = Linear(config.hidden_size, config.intermediate_size)
        self.output_dense = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_dense(F.silu(self.intermediate_dense(x)))


class ConvolutionModule(nn.Module):
    """Gated pointwise convolution, causal depthwise convolution, LayerNorm, SiLU, pointwise convolution."""

    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()
        channels, kernel = config.hidden_size, config.conv_depthwise_kernel_size
        self.layer_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.pointwise_conv1 = PointwiseConv(channels, 2 * channels, bias=False)
        self.depthwise_conv = nn.Conv1d(channels, channels, kernel, groups=channels, bias=False)
        self.depthwise_layer_norm = nn.LayerNorm(channels, eps=config.layer_norm_eps)
        self.pointwise_conv2 = PointwiseConv(channels, channels, bias=False)

    def forward(self, x: Tensor, keep: Tensor | None) -> Tensor:
        x = zero_masked(self.layer_norm(x), keep)
        x = F.glu(self.pointwise_conv1(x), dim=-1)
        x = F.pad(x.transpose(1, 2), (self.depthwise_conv.kernel_size[0] - 1, 0))
        x = self.depthwise_conv(x).transpose(1, 2)
        return self.pointwise_conv2(F.silu(self.depthwise_layer_norm(x)))


class ConformerLayer(nn.Module):
    """Half feed-forward, attention, convolution, half feed-forward, each with a residual; then LayerNorm."""

    def __init__(self, config: W2VBertConfig) -> None:
        super().__init__()

        def norm() -> nn.LayerNorm:
            return nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

        self.ffn1_layer_norm = norm()
        self.ffn1 = FeedForward(config)
        self.self_attn_layer_norm = norm()
        self.self_attn = RelativeKeyAttention(
            config.hidden_size,
            config.num_attention_heads,
            config.left_max_position_embeddings,
            config.right_max_position_embeddings,
        )
        self.conv_module = ConvolutionModule(config)
        self.ffn2_layer_norm = norm()
        self.ffn2 = FeedForward(config)
        self.final_layer_norm = norm()

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = x + 0.5 * self.ffn1(self.ffn1_layer_norm(x))
        x = x + self.self_attn(self.self_attn_layer_norm(x), keep)
        x = x + self.conv_module(x, keep)
        x = x + 0.5 * self.ffn2(self.ffn2_layer_norm(x))
        return self.final_layer_norm(x)


class Encoder(nn.Module):
    """The layers under the checkpoint's name."""

    def __init__(self, config: W2VBertConfig, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(ConformerLayer(config) for _ in range(num_layers))


class W2VBert(nn.Module):
    """The first `num_layers` layers of w2v-BERT.

    Args:
        config: sizes of the whole network.
        num_layers: how many encoder layers to build, 1 .. config.num_hidden_layers. The result is the hidden
            state of that index (0 is the input of the first layer); it has no norm beyond the layer's own.

    Raises:
        ConfigError: `num_layers` is out of range or the heads do not divide the channels.
    """

    UNUSED_KEYS: tuple[str, ...] = (r"masked_spec_embed",)

    def __init__(self, config: W2VBertConfig, num_layers: int) -> None:
        super().__init__()
        if not 1 <= num_layers <= config.num_hidden_layers:
            raise ConfigError(f"num_layers must lie in 1..{config.num_hidden_layers}, not {num_layers}")
        self.config = config
        self.feature_projection = FeatureProjection(config)
        self.encoder = Encoder(config, num_layers)
        later = tuple(rf"encoder\.layers\.{index}\..+" for index in range(num_layers, config.num_hidden_layers))
        self.UNUSED_KEYS = (*type(self).UNUSED_KEYS, *later)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Encode stacked filter banks.

        Args:
            features: (B, T, F), as the feature extractor gives them (spec 05 section 2).
            mask: (B, T), 1 for real frames and 0 for padding; None when all are real. Masked frames are no keys of
                attention and no input of convolutions, yet their own rows are computed and returned.

        Returns:
            Hidden state after the last layer, (B, T, C).
        """
        return deque(self.hidden_states(features, mask), maxlen=1).pop()

    def hidden_states(self, features: Tensor, mask: Tensor | None = None) -> Iterator[Tensor]:
        """Yield num_layers + 1 hidden states (B, T, C): the masked feature projection, then each layer's output."""
        check_frames(features, self.config.feature_projection_input_dim, "features")
        keep = boolean_mask(mask, features)
        x = zero_masked(self.feature_projection(features), keep)
        yield x
        for layer in self.encoder.layers:
            x = layer(x, keep)
            yield x
