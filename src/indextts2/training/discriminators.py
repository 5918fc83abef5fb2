"""Discriminators of the adversarial phase of the vocoder: multi-period and multi-resolution.

B batch, N samples, P period, F frequency bins, T frames.
Sources: Kong et al. 2020 (HiFi-GAN, multi-period), Jang et al. 2021 (UnivNet, multi-resolution spectrogram).
Channel counts are far below the published ones: they suit a generator of one or two million parameters.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from indextts2.training.losses import Spectrogram

SLOPE = 0.1


class ConvolutionStack(nn.Module):
    """2-D convolutions with leaky ReLU; gives the score map and the activations of every layer."""

    def __init__(self, layers: Sequence[nn.Conv2d], channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(weight_norm(layer) for layer in layers)
        self.score = weight_norm(nn.Conv2d(channels, 1, 3, padding=1))

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        features = []
        for layer in self.layers:
            image = F.leaky_relu(layer(image), SLOPE)
            features.append(image)
        return self.score(image), features


class PeriodDiscriminator(nn.Module):
    """Folds the waveform (B, N) to (B, 1, N/P, P) and looks along each phase of the period."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        widths = [1, *channels]
        layers = [nn.Conv2d(i, o, (5, 1), (3, 1), (2, 0)) for i, o in itertools.pairwise(widths)]
        self.stack = ConvolutionStack(layers, widths[-1])

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        wave = F.pad(wave, (0, -wave.shape[-1] % self.period))
        score, features = self.stack(wave.unflatten(-1, (-1, self.period)).unsqueeze(1))
        return score, features


class ResolutionDiscriminator(nn.Module):
    """Looks at the log magnitude spectrogram of one window length."""

    def __init__(self, n_fft: int, channels: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(n_fft)
        layers = [nn.Conv2d(1, channels, (9, 3), (2, 1), (4, 1))]
        layers += [nn.Conv2d(channels, channels, (9, 3), (2, 2), (4, 1)) for _ in range(3)]
        layers += [nn.Conv2d(channels, channels, 3, 1, 1)]
        self.stack = ConvolutionStack(layers, channels)

    def forward(self, wave: Tensor) -> tuple[Tensor, list[Tensor]]:
        with torch.autocast(wave.device.type, enabled=False):
            image = self.spectrogram(wave.float()).log().unsqueeze(1)
        score, features = self.stack(image)
        return score, features


class Discriminators(nn.Module):
    """All discriminators together.

    Args:
        periods: sample periods of the multi-period part; primes, so that they overlap little.
        period_channels: widths of its layers.
        n_ffts: window lengths of the multi-resolution part, in samples.
        resolution_channels: width of all its layers.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_channels: Sequence[int] = (16, 32, 64, 64),
        n_ffts: Sequence[int] = (512, 1024, 2048),
        resolution_channels: int = 16,
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(PeriodDiscriminator(p, period_channels) for p in periods)
        self.parts.extend(ResolutionDiscriminator(n, resolution_channels) for n in n_ffts)

    def forward(self, wave: Tensor) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Judge waveforms (B, N): one score map and one list of activations per discriminator."""
        results = [part(wave) for part in self.parts]
        return [score for score, _ in results], [features for _, features in results]
