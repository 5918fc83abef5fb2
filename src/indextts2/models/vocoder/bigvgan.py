"""BigVGAN v2: log-mel spectrogram -> waveform.

Legend: B batch, M mel bands, F mel frames, C channels, T samples at the rate of a stage, U hop (samples per frame).

Source: BigVGAN (Lee et al., 2023), spec 08.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from indextts2.config import BigVGANConfig
from indextts2.errors import ConfigError, UsageError
from indextts2.models.vocoder.activation import REACH, Activation, activated_convolution
from indextts2.models.vocoder.source import EXCITATION_CHANNELS, HarmonicSource

OUTER_KERNEL = 7


class AMPBlock(nn.Module):
    """Residual units of activation, dilated convolution, activation, convolution: (B,C,T) -> (B,C,T)."""

    def __init__(self, channels: int, kernel: int, dilations: tuple[int, ...], logscale: bool) -> None:
        super().__init__()

        def conv(dilation: int) -> nn.Conv1d:
            return nn.Conv1d(channels, channels, kernel, dilation=dilation, padding=(kernel - 1) * dilation // 2)

        self.convs1 = nn.ModuleList(conv(d) for d in dilations)
        self.convs2 = nn.ModuleList(conv(1) for _ in dilations)
        self.activations = nn.ModuleList(Activation(channels, logscale) for _ in range(2 * len(dilations)))

    def forward(self, x: Tensor) -> Tensor:
        convolutions = zip(self.convs1, self.convs2, strict=True)
        activations = zip(self.activations[0::2], self.activations[1::2], strict=True)
        for (dilated, plain), (first, second) in zip(convolutions, activations, strict=True):
            t = activated_convolution(first, dilated, x)
            x = activated_convolution(second, plain, t, residual=x)
        return x


class SourceFilter(nn.Module):
    """What the excitation adds to a stage: filtered down to its rate and weighed by its features."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        kernel = 2 * stride if stride > 1 else OUTER_KERNEL
        padding = (kernel - stride) // 2
        self.filter = nn.Conv1d(EXCITATION_CHANNELS, channels, kernel, stride, padding=padding)
        self.gain = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor, excitation: Tensor) -> Tensor:
        """Features (B,C,T) and excitation (B,3,stride*T) -> (B,C,T)."""
        return torch.addcmul(x, self.gain(x), self.filter(excitation))


def _check(config: BigVGANConfig) -> None:
    if len(config.upsample_rates) != len(config.upsample_kernel_sizes):
        raise ConfigError(
            f"upsample_rates {config.upsample_rates} and upsample_kernel_sizes {config.upsample_kernel_sizes} "
            "must be of one length"
        )
    if len(config.resblock_kernel_sizes) != len(config.resblock_dilation_sizes):
        raise ConfigError(
            f"resblock_kernel_sizes {config.resblock_kernel_sizes} and resblock_dilation_sizes "
            f"{config.resblock_dilation_sizes} must be of one length"
        )
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        if kernel < rate or (kernel - rate) % 2:
            raise ConfigError(f"an up-sampling kernel of {kernel} does not lengthen exactly by its rate {rate}")
    for kernel in config.resblock_kernel_sizes:
        if kernel % 2 == 0:
            raise ConfigError(f"resblock_kernel_sizes must be odd, not {kernel}")
    if config.upsample_initial_channel % 2 ** len(config.upsample_rates):
        raise ConfigError(
            f"upsample_initial_channel {config.upsample_initial_channel} cannot be halved "
            f"{len(config.upsample_rates)} times"
        )


class BigVGAN(nn.Module):
    """Generator of BigVGAN with its convolution weights folded (no weight norm)."""

    # Constant filters, which the official module stores: computed here instead.
    UNUSED_KEYS: tuple[str, ...] = (r"(.+\.)?(upsample\.filter|downsample\.lowpass\.filter)",)

    def __init__(self, config: BigVGANConfig) -> None:
        super().__init__()
        _check(config)
        self.config = config
        channels = config.upsample_initial_channel
        self.conv_pre = nn.Conv1d(config.num_mels, channels, OUTER_KERNEL, padding=OUTER_KERNEL // 2)
        self.ups = nn.ModuleList()
        self.resblocks = nn.ModuleList()
        for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
            up = nn.ConvTranspose1d(channels, channels // 2, kernel, rate, padding=(kernel - rate) // 2)
            # The official module wraps each one in a list of its own: keys `ups.<stage>.0`.
            self.ups.append(nn.Sequential(up))
            channels //= 2
            for width, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
                self.resblocks.append(AMPBlock(channels, width, dilations, config.snake_logscale))
        if config.pitch_channels:
            self.source = HarmonicSource(config.num_mels, config.pitch_channels, config.hop_size, config.sampling_rate)
            strides = [math.prod(config.upsample_rates[stage + 1 :]) for stage in range(len(self.ups))]
            self.source_filters = nn.ModuleList(
                SourceFilter(config.upsample_initial_channel >> (stage + 1), stride)
                for stage, stride in enumerate(strides)
            )
        self.activation_post = Activation(channels, config.snake_logscale)
        self.conv_post = nn.Conv1d(channels, 1, OUTER_KERNEL, padding=OUTER_KERNEL // 2, bias=config.use_bias_at_final)

    def forward(self, mel: Tensor) -> Tensor:
        """Natural-log mel (B,M,F) float32 -> waveform (B,1,U*F) in [-1, 1]."""
        return self.generate(mel, self._excitation(mel, 0, mel.shape[-1]))

    def _excitation(self, mel: Tensor, first: int, stop: int) -> Tensor | None:
        return self.source(mel, first, stop) if self.config.pitch_channels else None

    def generate(self, mel: Tensor, excitation: Tensor | None = None) -> Tensor:
        """`forward` with the excitation (B,3,U*F) of the mel; None: the model has no source."""
        x = self.conv_pre(mel)
        blocks_per_stage = len(self.config.resblock_kernel_sizes)
        for stage, up in enumerate(self.ups):
            x = up(x)
            if excitation is not None:
                x = self.source_filters[stage](x, excitation)
            first = stage * blocks_per_stage
            # Always summed in the order of the kernels, so that results do not depend on scheduling.
            total = self.resblocks[first](x)
            for block in self.resblocks[first + 1 : first + blocks_per_stage]:
                total = total.add_(block(x))
            x = total.div_(blocks_per_stage)
        x = self.conv_post(self.activation_post(x))
        return torch.tanh(x) if self.config.use_tanh_at_final else x.clamp(-1.0, 1.0)

    def window(self, mel: Tensor, first: int, stop: int) -> Tensor:
        """The samples (B,1,U*(stop-first)) that the frames `first` to `stop` have in `forward`, up to rounding.

        They are computed with `halo_frames` of real context.
        """
        begin, end = max(first - self.halo_frames, 0), min(stop + self.halo_frames, mel.shape[-1])
        wave = self.generate(mel[..., begin:end], self._excitation(mel, begin, end))
        hop = self.config.hop_size
        return wave[..., (first - begin) * hop : (stop - begin) * hop]

    @property
    def halo_frames(self) -> int:
        """Mel frames of context on either side that the samples of one frame depend on."""
        first, last = self.receptive_field(0, self.config.hop_size - 1)
        return max(-first, last)

    def receptive_field(self, first_sample: int, last_sample: int) -> tuple[int, int]:
        """First and last mel frame (may lie outside of the input) that influence a range of samples."""
        config = self.config
        outer = OUTER_KERNEL // 2
        low, high = first_sample - outer - REACH, last_sample + outer + REACH
        for rate, kernel in reversed(list(zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True))):
            reach = max(
                sum((width - 1) // 2 * (dilation + 1) + 2 * REACH for dilation in dilations)
                for width, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True)
            )
            low, high = low - reach, high + reach
            # Output o = rate * i + k - padding with 0 <= k < kernel.
            padding = (kernel - rate) // 2
            low, high = math.ceil((low + padding - kernel + 1) / rate), (high + padding) // rate
        return low - outer, high + outer

    def chunks(self, mel: Tensor, chunk_frames: int) -> Iterator[Tensor]:
        """Synthesise (B,M,F) piece by piece: yields (B,1,U*n) with n <= `chunk_frames`.

        The pieces joined equal the whole up to rounding. Memory is bounded by the piece, not by the utterance.

        Raises:
            UsageError: `chunk_frames` is below 1.
        """
        if chunk_frames < 1:
            raise UsageError(f"chunk_frames must be at least 1, not {chunk_frames}")
        for start in range(0, mel.shape[-1], chunk_frames):
            yield self.window(mel, start, min(start + chunk_frames, mel.shape[-1]))
