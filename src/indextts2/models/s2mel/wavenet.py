"""WaveNet head of the DiT: gated convolutions over frames, conditioned on time.

Legend: B batch, T frames, C channels, L layers, R rows of a time table (B, or 1 where all items share one time).
Everything stays frame-major (B,T,C): a convolution sees it as an image of one row in channels-last layout, for which
there are direct kernels.

Source: WaveNet (van den Oord et al., 2016) as in VITS and Seed-VC, spec 07 section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import WaveNetConfig
from indextts2.errors import ConfigError
from indextts2.models.convolution import windows
from indextts2.models.dense import Kept, linear, reduced_dtype, reduced_linear, uses_onednn

MOST_COPIED_FRAMES = 512


class NestedConv(nn.Module):
    """A Conv1d under the key `conv.conv`, as the official wrappers of wrappers store it."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 1) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv = nn.Conv1d(in_channels, out_channels, kernel)
        self.kernel = kernel
        self._kept: Kept[Tensor] = Kept()

    @property
    def weight(self) -> Tensor:
        return self.conv.get_parameter("conv.weight")

    @property
    def bias(self) -> Tensor:
        return self.conv.get_parameter("conv.bias")

    def pointwise(self, x: Tensor) -> Tensor:
        """Apply a convolution of kernel 1 to (..., in) as a linear map -> (..., out)."""
        dtype = reduced_dtype(x)
        if dtype is None or self.weight.requires_grad:
            return linear(x, self.weight[..., 0], self.bias)
        return reduced_linear(x, self._kept.get(self.weight, dtype, lambda weight: weight[..., 0].to(dtype)), self.bias)

    def convolve(self, y: Tensor, dilation: int) -> Tensor:
        """Convolve (B,T,in) over frames without padding or bias -> (B,T',out).

        The convolution of torch brings the weight into an order of its own in every call, which takes as long as the
        convolution of a short utterance; that of a long one saves the copies of the frames.
        """
        frozen = not (torch.is_grad_enabled() or self.weight.requires_grad)
        if frozen and (dtype := reduced_dtype(y)) is not None:
            return reduced_linear(windows(y.to(dtype), self.kernel, dilation), self._taps(dtype), None).to(y.dtype)
        if frozen and y.shape[0] * y.shape[1] <= MOST_COPIED_FRAMES and y.is_cpu and uses_onednn():
            return linear(windows(y, self.kernel, dilation), self._taps(y.dtype))
        return conv_frames(y, self.weight, dilation)

    def _taps(self, dtype: torch.dtype) -> Tensor:
        """The weight as (out, kernel * in), for products with `windows`."""
        return self._kept.get(
            self.weight, dtype, lambda weight: weight.transpose(1, 2).flatten(1).contiguous().to(dtype)
        )


def reflect_pad(y: Tensor, pad: int, lengths: Tensor | None) -> Tensor:
    """Mirror `pad` frames at both ends of (B,T,C) without repeating the edge -> (B,T+2*pad,C).

    With `lengths` (B,) the right mirror of each item stands at its own end; each must exceed `pad`.
    A sequence of `pad` frames or fewer is lengthened by zeros first, as in the official code.
    """
    frames = y.shape[1]
    if lengths is None:
        extra = max(0, pad - frames + 1)
        y = F.pad(y, (0, 0, 0, extra)) if extra else y
        mirrored = torch.cat((y[:, 1 : pad + 1].flip(1), y, y[:, -pad - 1 : -1].flip(1)), dim=1)
        return mirrored[:, : frames + 2 * pad]
    last = lengths[:, None] - 1
    source = torch.arange(-pad, frames + pad, device=y.device).abs()
    source = torch.where(source > last, 2 * last - source, source).clamp(min=0)
    return torch.gather(y, 1, source[..., None].expand(-1, -1, y.shape[-1]))


def conv_frames(y: Tensor, weight: Tensor, dilation: int) -> Tensor:
    """Convolve (B,T,C_in) over frames with `weight` (C_out,C_in,K), no padding -> (B,T',C_out)."""
    image = y[:, None].permute(0, 3, 1, 2)
    return F.conv2d(image, weight[:, :, None], dilation=(1, dilation)).permute(0, 2, 3, 1)[:, 0]


class WaveNet(nn.Module):
    """Stack of gated dilated convolutions with residual and skip outputs."""

    def __init__(self, config: WaveNetConfig) -> None:
        super().__init__()
        if config.kernel_size % 2 == 0:
            raise ConfigError(f"s2mel.wavenet.kernel_size must be odd, not {config.kernel_size}")
        if config.num_layers < 1:
            raise ConfigError(f"s2mel.wavenet.num_layers must be at least 1, not {config.num_layers}")
        channels, layers = config.hidden_dim, config.num_layers
        self.dilations = [config.dilation_rate**i for i in range(layers)]
        self.half_kernel = config.kernel_size // 2
        self.cond_layer = NestedConv(channels, 2 * channels * layers)
        self.in_layers = nn.ModuleList(NestedConv(channels, 2 * channels, config.kernel_size) for _ in range(layers))
        # The last layer has no residual output.
        widths = [2 * channels] * (layers - 1) + [channels]
        self.res_skip_layers = nn.ModuleList(NestedConv(channels, width) for width in widths)

    @property
    def reach(self) -> int:
        """Frames on either side that one output frame depends on."""
        return self.half_kernel * sum(self.dilations)

    def _layers(self) -> Iterable[tuple[NestedConv, NestedConv]]:
        """Gate and mixing convolution of every layer."""
        return cast("Iterable[tuple[NestedConv, NestedConv]]", zip(self.in_layers, self.res_skip_layers, strict=True))

    def table(self, time_embedding: Tensor) -> Tensor:
        """(R,C) -> offsets (R,L,2C) of the gates, the biases of the convolutions added."""
        offsets = self.cond_layer.pointwise(time_embedding).unflatten(-1, (len(self.in_layers), -1))
        return offsets + torch.stack([gate.bias for gate, _ in self._layers()])

    def forward(self, y: Tensor, table: Tensor, lengths: Tensor | None = None) -> Tensor:
        """(B,T,C) -> (B,T,C); `table` (R,L,2C), `lengths` (B,) of padded items."""
        channels = y.shape[-1]
        skips: Tensor | float = 0.0
        for i, (gate, mix) in enumerate(self._layers()):
            padded = reflect_pad(y, self.half_kernel * self.dilations[i], lengths)
            a = gate.convolve(padded, self.dilations[i]).add_(table[:, i, None])
            s = mix.pointwise(torch.tanh(a[..., :channels]) * torch.sigmoid(a[..., channels:]))
            skips = skips + s[..., -channels:]
            if s.shape[-1] > channels:
                y = y + s[..., :channels]
        return cast("Tensor", skips)
