"""CAM++: a speaker encoder of densely connected time-delay layers with context-aware masking.

Axes: B batch, T fbank frames (100 Hz), U frames after the first time-delay layer (50 Hz), M mel bins,
H frequency rows, C channels, G growth (channels that a dense layer adds), S segments of `segment_frames`.
Channels lie together in memory: as the last axis, and in inference also those of images (B, C, H, T), which are in
torch's channels-last format. So normalisation is a scale and a shift of rows, pointwise maps are matrix products.
Source: Wang et al. 2023, "CAM++" (3D-Speaker's campplus_cn_common); spec 06 section 2.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import CampPlusConfig
from indextts2.errors import AudioError, ConfigError, UsageError
from indextts2.models.convolution import FrameConv, PointwiseConv
from indextts2.models.dense import linear
from indextts2.models.speaker.batch_norm import BatchNorm

# Fixed by the published architecture: both residual stages and the last head convolution halve the frequency axis.
HEAD_HALVINGS = 3
TDNN_KERNEL = 5
TDNN_STRIDE = 2
DENSE_KERNEL = 3
# Shortest input whose 50 Hz sequence has the two frames that a standard deviation needs.
MIN_FRAMES = TDNN_STRIDE + 1


class Nonlinear(nn.Module):
    """BatchNorm and, unless told otherwise, ReLU: (..., C) -> (..., C)."""

    def __init__(self, channels: int, affine: bool = True, relu: bool = True) -> None:
        super().__init__()
        self.batchnorm = BatchNorm(channels, affine)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.batchnorm(x)
        return F.relu(x, inplace=True) if self.relu else x


def normalised(convolution: nn.Conv2d, norm: BatchNorm, x: Tensor) -> Tensor:
    """The convolution of an image and the norm behind it, which outside of training is part of the weight."""
    if norm.training:
        return norm.normalise_batch(convolution(x))
    scale, shift = norm.scale_and_shift()
    weight = convolution.weight * scale[:, None, None, None]
    if x.shape[1] > 1:
        return F.conv2d(x, weight, shift, convolution.stride, convolution.padding)
    # For a single input channel, torch's convolution is several times slower than a product with its nine neighbours.
    padded, (rows, columns) = F.pad(x[:, 0], (1, 1, 1, 1)), x.shape[2:]
    planes = [padded[:, row : row + rows, column : column + columns] for row in range(3) for column in range(3)]
    return linear(torch.stack(planes, dim=1).permute(0, 2, 3, 1), weight.flatten(1), shift).permute(0, 3, 1, 2)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut on (B, C, H, T); `stride` acts on H only."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, stride=(stride, 1), padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = BatchNorm(channels)
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut.append(nn.Conv2d(channels, channels, 1, stride=(stride, 1), bias=False))
            self.shortcut.append(BatchNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(normalised(self.conv1, self.bn1, x), inplace=True)
        if len(self.shortcut):
            x = normalised(cast("nn.Conv2d", self.shortcut[0]), cast("BatchNorm", self.shortcut[1]), x)
        return F.relu(normalised(self.conv2, self.bn2, y).add_(x), inplace=True)


class ConvolutionHead(nn.Module):
    """2-D front end: (B, M, T) -> (B, C * M / 8, T), row index = channel * H + frequency."""

    def __init__(self, config: CampPlusConfig) -> None:
        super().__init__()
        channels = config.head_channels
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1, bias=False)
        self.bn1 = BatchNorm(channels)
        self.layer1 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.layer2 = nn.Sequential(ResidualBlock(channels, 2), ResidualBlock(channels, 1))
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=(2, 1), padding=1, bias=False)
        self.bn2 = BatchNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(normalised(self.conv1, self.bn1, x.unsqueeze(1)), inplace=True)
        # The faster format; but with it, the gradient of a convolution of four channels crashed torch 2.13.
        plain = torch.is_grad_enabled()
        y = y.contiguous(memory_format=torch.contiguous_format if plain else torch.channels_last)
        y = F.relu(normalised(self.conv2, self.bn2, self.layer2(self.layer1(y))), inplace=True)
        return y.flatten(1, 2)


class TimeDelayLayer(nn.Module):
    """Convolution that halves the frame rate, BatchNorm, ReLU: (B, C_in, T) -> (B, U, C_out)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Conv1d(
            in_channels, out_channels, TDNN_KERNEL, stride=TDNN_STRIDE, padding=TDNN_KERNEL // 2, bias=False
        )
        self.nonlinear = Nonlinear(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.nonlinear(self.linear(x).transpose(1, 2))


class ContextAwareMask(nn.Module):
    """Convolution (B, U, C) -> (B, U, G), gated by the means over the whole utterance and over segments of it."""

    def __init__(self, channels: int, growth: int, dilation: int, segment_frames: int) -> None:
        super().__init__()
        self.segment_frames = segment_frames
        self.linear_local = FrameConv(channels, growth, DENSE_KERNEL, dilation, bias=False)
        self.linear1 = PointwiseConv(channels, channels // 2)
        self.linear2 = PointwiseConv(channels // 2, growth)

    def forward(self, x: Tensor) -> Tensor:
        # The gate is constant within a segment: it is computed once per segment. The last segment may be shorter,
        # its mean is over the frames it has.
        segments = torch.stack([segment.mean(dim=1) for segment in x.split(self.segment_frames, dim=1)], dim=1)
        context = segments + x.mean(dim=1, keepdim=True)
        gate = torch.sigmoid(self.linear2(F.relu(self.linear1(context))))
        return self.linear_local(x) * gate.repeat_interleave(self.segment_frames, dim=1)[:, : x.shape[1]]


class DenseLayer(nn.Module):
    """Bottleneck and context-aware mask: the G channels (B, U, G) that one layer adds to its input (B, U, C)."""

    def __init__(self, config: CampPlusConfig, in_channels: int, dilation: int) -> None:
        super().__init__()
        bottleneck = config.bottleneck_channels
        self.nonlinear1 = Nonlinear(in_channels)
        self.linear1 = PointwiseConv(in_channels, bottleneck, bias=False)
        self.nonlinear2 = Nonlinear(bottleneck)
        self.cam_layer = ContextAwareMask(bottleneck, config.growth_rate, dilation, config.segment_frames)

    def forward(self, x: Tensor) -> Tensor:
        return self.cam_layer(self.nonlinear2(self.linear1(self.nonlinear1(x))))


class DenseBlock(nn.ModuleDict):
    """Layers `tdnnd1`, `tdnnd2`, ...; each reads all channels (B, U, C) so far and appends G more."""

    def __init__(self, config: CampPlusConfig, in_channels: int, layers: int, dilation: int) -> None:
        growth = config.growth_rate
        super().__init__(
            {f"tdnnd{i + 1}": DenseLayer(config, in_channels + i * growth, dilation) for i in range(layers)}
        )
        self.out_channels = in_channels + layers * growth

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            # Autograd keeps each layer's input, which therefore may not be written to afterwards.
            for layer in self.values():
                x = torch.cat([x, layer(x)], dim=-1)
            return x
        whole = x.new_empty(*x.shape[:2], self.out_channels)
        filled = x.shape[-1]
        whole[..., :filled] = x
        for layer in self.values():
            added = layer(whole[..., :filled])
            whole[..., filled : filled + added.shape[-1]] = added
            filled += added.shape[-1]
        return whole


class TransitLayer(nn.Module):
    """BatchNorm, ReLU, pointwise convolution that halves the channels: (B, U, C) -> (B, U, C / 2)."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.nonlinear = Nonlinear(in_channels)
        self.linear = PointwiseConv(in_channels, in_channels // 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.nonlinear(x))


class EmbeddingLayer(nn.Module):
    """Statistics (B, C) -> embedding (B, E): linear map and BatchNorm without affine part."""

    def __init__(self, in_channels: int, embedding_size: int) -> None:
        super().__init__()
        self.linear = PointwiseConv(in_channels, embedding_size, bias=False)
        self.nonlinear = Nonlinear(embedding_size, affine=False, relu=False)

    def forward(self, stats: Tensor) -> Tensor:
        return self.nonlinear(self.linear(stats))


def statistics_pooling(x: Tensor) -> Tensor:
    """Mean and unbiased standard deviation over time: (B, U >= 2, C) -> (B, 2 C)."""
    mean = x.mean(dim=1, keepdim=True)
    # Faster than torch's own deviation; the norm has a gradient of zero where all frames are alike, a root has none.
    deviation = torch.linalg.vector_norm(x - mean, dim=1) * (x.shape[1] - 1) ** -0.5
    return torch.cat([mean.squeeze(1), deviation], dim=-1)


class XVector(nn.ModuleDict):
    """Time-delay layer, dense blocks with transit layers, statistics pooling, embedding: (B, C, T) -> (B, E)."""

    def __init__(self, config: CampPlusConfig, in_channels: int) -> None:
        super().__init__({"tdnn": TimeDelayLayer(in_channels, config.initial_channels)})
        channels = config.initial_channels
        self.num_blocks = len(config.block_layers)
        for index, (layers, dilation) in enumerate(zip(config.block_layers, config.block_dilations, strict=True), 1):
            block = DenseBlock(config, channels, layers, dilation)
            self[f"block{index}"], self[f"transit{index}"] = block, TransitLayer(block.out_channels)
            channels = block.out_channels // 2
        self["out_nonlinear"] = Nonlinear(channels)
        self["dense"] = EmbeddingLayer(2 * channels, config.embedding_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self["tdnn"](x)
        for index in range(1, self.num_blocks + 1):
            x = self[f"transit{index}"](self[f"block{index}"](x))
        return self["dense"](statistics_pooling(self["out_nonlinear"](x)))


class CampPlus(nn.Module):
    """Speaker encoder: one style vector per utterance.

    Raises:
        ConfigError: the numbers of blocks and dilations differ.
    """

    UNUSED_KEYS: tuple[str, ...] = (r".+\.num_batches_tracked",)

    def __init__(self, config: CampPlusConfig) -> None:
        super().__init__()
        layers, dilations = config.block_layers, config.block_dilations
        if len(layers) != len(dilations):
            raise ConfigError(f"campplus: {len(layers)} block_layers but {len(dilations)} block_dilations")
        self.config = config
        rows = config.feat_dim
        for _ in range(HEAD_HALVINGS):
            rows = (rows + 1) // 2
        self.head = ConvolutionHead(config)
        self.xvector = XVector(config, config.head_channels * rows)

    def forward(self, fbank: Tensor) -> Tensor:
        """Embed utterances of one length.

        Args:
            fbank: (B, T, M) log filter bank at 100 Hz, its mean over time subtracted (spec 06 section 1).

        Returns:
            (B, E) style vectors, not normalised in length.

        Raises:
            AudioError: there are too few frames for statistics over time.
            UsageError: the shape is wrong.
        """
        if fbank.ndim != 3 or fbank.shape[2] != self.config.feat_dim:
            raise UsageError(f"fbank must have shape (batch, frames, {self.config.feat_dim}), not {tuple(fbank.shape)}")
        if fbank.shape[1] < MIN_FRAMES:
            raise AudioError(
                f"the reference audio gives {fbank.shape[1]} filter-bank frames; the speaker encoder needs at least "
                f"{MIN_FRAMES}: use a longer recording"
            )
        return self.xvector(self.head(fbank.transpose(1, 2)))
