"""Convolutions over frames that stay frame-major, (B,T,C), as products.

Legend: B batch, T frames, C or I input channels, O output channels, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.models.dense import Kept, linear


class PointwiseConv(nn.Conv1d):
    """Convolution of kernel 1, (B,T,I) -> (B,T,O): a linear map whose weight keeps the checkpoint's shape (O,I,1)."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.squeeze(-1), self.bias)


class FrameConv(nn.Conv1d):
    """Convolution (B,T,I) -> (B,T,O) with zeros beyond both ends; the weight keeps its shape (O,I,K), K odd.

    In inference a product with the frames under the kernel, the weight kept in its order: torch's convolution brings
    it into an order of its own in every call, which takes as long as the convolution of a short utterance.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, dilation: int = 1, bias: bool = True) -> None:
        self.reach = dilation * (kernel // 2)
        super().__init__(in_channels, out_channels, kernel, dilation=dilation, padding=self.reach, bias=bias)
        self._kept: Kept[Tensor] = Kept()

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() or self.weight.requires_grad or not x.is_cpu:
            return super().forward(x.transpose(1, 2)).transpose(1, 2)
        weight = self._kept.get(self.weight, "product", lambda weight: weight.transpose(1, 2).flatten(1).contiguous())
        padded = F.pad(x, (0, 0, self.reach, self.reach))
        return linear(windows(padded, self.kernel_size[0], self.dilation[0]), weight, self.bias)


def windows(y: Tensor, kernel: int, dilation: int) -> Tensor:
    """The frames under the kernel, one after the other, for each of its places: (B,T,C) -> (B,T',kernel*C)."""
    batch, frames, channels = y.shape
    y = y.contiguous()
    places = frames - dilation * (kernel - 1)
    shape = (batch, places, kernel, channels)
    return y.as_strided(shape, (y.stride(0), channels, dilation * channels, 1)).reshape(batch, places, -1)
