"""BigVGAN with its activation by the definition: padding, transposed convolution, snake, convolution, all in memory.

B batch, C channels, T samples at the rate of a stage, F mel frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.models.vocoder.activation import EPSILON, TAPS, Activation, kaiser_sinc_filter
from indextts2.models.vocoder.bigvgan import AMPBlock, BigVGAN


class PlainBigVGAN:
    """Log-mel (B, M, F) -> waveform (B, 1, U * F)."""

    def __init__(self, ours: BigVGAN) -> None:
        self.ours = ours
        self.filter = torch.tensor(kaiser_sinc_filter(), dtype=torch.float32)

    def __call__(self, mel: Tensor) -> Tensor:
        ours = self.ours
        excitation = ours.source(mel, 0, mel.shape[-1]) if ours.config.pitch_channels else None
        x = ours.conv_pre(mel)
        per_stage = len(ours.config.resblock_kernel_sizes)
        for stage, up in enumerate(ours.ups):
            x = up(x)
            if excitation is not None:
                source = ours.source_filters[stage]
                x = x + source.gain(x) * source.filter(excitation)
            blocks = ours.resblocks[stage * per_stage : (stage + 1) * per_stage]
            x = torch.stack([self._block(block, x) for block in blocks]).mean(0)
        x = ours.conv_post(self._activate(ours.activation_post, x))
        return torch.tanh(x) if ours.config.use_tanh_at_final else torch.clamp(x, -1.0, 1.0)

    def _block(self, block: torch.nn.Module, x: Tensor) -> Tensor:
        assert isinstance(block, AMPBlock)
        for n, (dilated, plain) in enumerate(zip(block.convs1, block.convs2, strict=True)):
            t = dilated(self._activate(block.activations[2 * n], x))
            x = x + plain(self._activate(block.activations[2 * n + 1], t))
        return x

    def _activate(self, activation: torch.nn.Module, x: Tensor) -> Tensor:
        """(B, C, T) -> (B, C, T) through twice the rate."""
        assert isinstance(activation, Activation)
        channels, side = x.shape[1], TAPS // 2
        taps = self.filter.expand(channels, 1, TAPS)
        padded = F.pad(x, (side - 1, side - 1), mode="replicate")
        crop = 3 * side - 3
        u = 2 * F.conv_transpose1d(padded, taps, stride=2, groups=channels)[..., crop:-crop]
        alpha, beta = activation.act.alpha[:, None], activation.act.beta[:, None]
        if activation.act.logscale:
            alpha, beta = torch.exp(alpha), torch.exp(beta)
        s = u + (1.0 / (beta + EPSILON)) * torch.sin(u * alpha) ** 2
        return F.conv1d(F.pad(s, (side - 1, side), mode="replicate"), taps, stride=2, groups=channels)
