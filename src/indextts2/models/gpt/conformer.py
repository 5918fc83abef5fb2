"""Conformer encoder of the two conditioners (spec 03 section 2).

B batch, T input frames, C input width, T' = (T - 1) // 2 subsampled frames, D encoder width, H heads, K = D / H.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import ConformerConfig
from indextts2.errors import ConfigError, UsageError
from indextts2.models.dense import Linear, add_product, linear

MIN_FRAMES = 3
"""Fewest input frames that give one subsampled frame."""
ACTIVATIONS = 1 << 20
"""About so many numbers between the subsampling convolution and the layer behind it are made at a time."""


def sinusoidal_positions(frames: int, width: int, device: torch.device) -> Tensor:
    """Absolute sine and cosine table (frames, width), interleaved, float32."""
    # The exponents are rounded to float32 before exp, as in the table that the published weights were trained with.
    rates = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10000.0) / width))
    angles = torch.arange(frames, device=device, dtype=torch.float32)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).reshape(frames, width)


class ConvSubsampling(nn.Module):
    """One strided 3x3 convolution over the (time, feature) image and a linear layer: (B, T, C) -> (B, T', D).

    Between the two lie D x F' activations per frame, F' = (C - 1) // 2: 1 MB at full size. On a CPU they are made for
    some of the D channels at a time, multiplied by the columns of the linear layer that belong to them, and summed up.
    """

    def __init__(self, input_dim: int, width: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, width, 3, stride=2), nn.ReLU())
        self.out = nn.Sequential(Linear(width * ((input_dim - 1) // 2), width))

    def forward(self, x: Tensor) -> Tensor:
        kernel, kernel_bias = self.conv.get_parameter("0.weight").flatten(1), self.conv.get_parameter("0.bias")[:, None]
        weight, bias = self.out.get_parameter("0.weight"), self.out.get_parameter("0.bias")
        image = x.unfold(1, 3, 2).unfold(2, 3, 2)  # (B, T', F', 3, 3)
        batch, frames, features = image.shape[:3]
        # The convolution is a product (D, 9) (9, F' B T'). Its result is (D F', B T'), in the order of the columns of
        # `weight`, which is multiplied by it as it lies in memory.
        patches = image.permute(3, 4, 2, 0, 1).reshape(9, -1)
        y = bias[:, None].repeat(1, batch * frames)
        at_once = max(ACTIVATIONS // patches.shape[1], 1) if x.is_cpu else len(kernel)
        for start in range(0, len(kernel), at_once):
            channels = slice(start, start + at_once)
            activated = torch.addmm(kernel_bias[channels], kernel[channels], patches).relu_()
            columns = weight[:, start * features : (start + at_once) * features]
            y = add_product(y, columns, activated.view(-1, batch * frames))
        return y.t().contiguous().view(batch, frames, -1)


class PositionAttention(nn.Module):
    """Self-attention whose score also holds an absolute position of the key.

    score[i, j] = ((q_i + u) k_j + (q_i + v) p_j) / sqrt(K). There is no relative shift: p depends on j only.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.linear_q = Linear(width, width)
        self.linear_k = Linear(width, width)
        self.linear_v = Linear(width, width)
        self.linear_out = Linear(width, width)
        self.linear_pos = Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, width // heads))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, width // heads))

    def _split(self, x: Tensor) -> Tensor:
        """(B, T', D) -> (B, H, T', K)"""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        q, k, v = self._split(self.linear_q(x)), self._split(self.linear_k(x)), self._split(self.linear_v(x))
        p = self._split(self.linear_pos(positions)[None])
        # q (k + p) + (u k + v p): the second term depends on the key only, so no second T' x T' product is needed.
        key_bias = k @ self.pos_bias_u[:, :, None] + p @ self.pos_bias_v[:, :, None]
        scores = (q @ (k + p).transpose(-2, -1) + key_bias.transpose(-2, -1)) / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None, :], float("-inf"))
        attended = scores.softmax(dim=-1) @ v
        return self.linear_out(attended.transpose(1, 2).flatten(2))


class ConvModule(nn.Module):
    """Pointwise with GLU, depthwise, LayerNorm over channels, SiLU, pointwise. Works on (B, T', D)."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.pointwise_conv1 = nn.Conv1d(width, 2 * width, 1)
        self.depthwise_conv = nn.Conv1d(width, width, kernel_size, padding=(kernel_size - 1) // 2, groups=width)
        self.norm = nn.LayerNorm(width)
        self.pointwise_conv2 = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        x = F.glu(_pointwise(x, self.pointwise_conv1), dim=-1)
        if mask is not None:
            # The depthwise kernel must see zeros behind a short clip, as it does at the end of an unpadded one.
            x = x.masked_fill(~mask[:, :, None], 0.0)
        x = self.depthwise_conv(x.transpose(1, 2)).transpose(1, 2)
        return _pointwise(F.silu(self.norm(x)), self.pointwise_conv2)


def _pointwise(x: Tensor, convolution: nn.Conv1d) -> Tensor:
    """A convolution with a kernel of one frame, as the linear layer that it is: (B, T', I) -> (B, T', O)."""
    return linear(x, convolution.weight.squeeze(-1), convolution.bias)


class FeedForward(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.w_1 = Linear(width, inner)
        self.w_2 = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w_2(F.silu(self.w_1(x)))


class ConformerBlock(nn.Module):
    """Pre-norm attention, convolution and (single) feed-forward, then a closing LayerNorm."""

    def __init__(self, config: ConformerConfig) -> None:
        super().__init__()
        width = config.output_size
        self.self_attn = PositionAttention(width, config.attention_heads)
        self.feed_forward = FeedForward(width, config.linear_units)
        self.conv_module = ConvModule(width, config.kernel_size)
        self.norm_mha = nn.LayerNorm(width)
        self.norm_conv = nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)
        self.norm_final = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.self_attn(self.norm_mha(x), positions, mask)
        x = x + self.conv_module(self.norm_conv(x), mask)
        x = x + self.feed_forward(self.norm_ff(x))
        return self.norm_final(x)


class ConformerEncoder(nn.Module):
    """Conditioning encoder: (B, T, C) semantic features -> (B, T', D)."""

    UNUSED_KEYS = (r"embed\.pos_enc\.pe",)  # the position table is computed

    def __init__(self, config: ConformerConfig, input_dim: int) -> None:
        super().__init__()
        if config.input_layer != "conv2d2":
            raise ConfigError(f"input_layer {config.input_layer!r} is not supported; only 'conv2d2' is")
        if config.output_size % config.attention_heads:
            raise ConfigError(f"output_size {config.output_size} is no multiple of {config.attention_heads} heads")
        self.width = config.output_size
        self.embed = ConvSubsampling(input_dim, config.output_size)
        self.encoders = nn.ModuleList(ConformerBlock(config) for _ in range(config.num_blocks))
        self.after_norm = nn.LayerNorm(config.output_size)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Encode `x` (B, T, C); `lengths` (B,) counts the valid frames where the batch is padded.

        Returns:
            The frames (B, T', D) and their mask (B, T') bool, None where `lengths` is None.

        Raises:
            UsageError: fewer than 3 frames.
        """
        frames = x.shape[1]
        if frames < MIN_FRAMES:
            raise UsageError(f"a conditioner got {frames} frames; at least {MIN_FRAMES} are needed (use longer audio)")
        mask = None
        if lengths is not None:
            # A subsampled frame is valid when the last of the three frames under it is.
            mask = (torch.arange(frames, device=x.device) < lengths[:, None])[:, 2::2]
        h = self.embed(x) * math.sqrt(self.width)
        positions = sinusoidal_positions(h.shape[1], self.width, x.device).to(h.dtype)
        for block in self.encoders:
            h = block(h, positions, mask)
        return self.after_norm(h), mask
