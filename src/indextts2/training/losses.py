"""Spectral and adversarial losses on waveforms.

B batch, N samples, F frequency bins, T frames, M mel bands.
Sources: Yamamoto et al. 2020 (Parallel WaveGAN, multi-resolution STFT loss), Kumar et al. 2023 (DAC, multi-scale mel
loss), Mao et al. 2017 (least-squares GAN), Kong et al. 2020 (HiFi-GAN, feature matching).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from indextts2.audio.features import slaney_mel_basis
from indextts2.config import MelConfig

MAGNITUDE_FLOOR = 1e-5


class Spectrogram(nn.Module):
    """Magnitude STFT with a periodic Hann window and a hop of a quarter of it: (B, N) -> (B, F, T)."""

    window: Tensor

    def __init__(self, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)

    def forward(self, wave: Tensor) -> Tensor:
        spectrum = torch.stft(wave, self.n_fft, self.n_fft // 4, window=self.window, return_complex=True)
        power = spectrum.real.square() + spectrum.imag.square()
        # The floor keeps the gradient of the root finite where the signal is digital silence.
        return (power + MAGNITUDE_FLOOR**2).sqrt()


def stft_distance(predicted: Tensor, target: Tensor) -> Tensor:
    """Spectral convergence plus L1 of log magnitudes of two magnitude spectrograms (B, F, T)."""
    convergence = (target - predicted).norm() / target.norm().clamp_min(MAGNITUDE_FLOOR)
    return convergence + (predicted.log() - target.log()).abs().mean()


class MultiResolutionSTFTLoss(nn.Module):
    """Mean of `stft_distance` over several window lengths."""

    def __init__(self, n_ffts: Sequence[int] = (1024, 2048, 4096)) -> None:
        super().__init__()
        self.spectrograms = nn.ModuleList(Spectrogram(n) for n in n_ffts)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Compare waveforms (B, N); returns a scalar."""
        distances = [stft_distance(s(predicted), s(target)) for s in self.spectrograms]
        return torch.stack(distances).mean()


def hum_loss(wave: Tensor, hop: int) -> Tensor:
    """How much of waveforms (B, N) repeats from frame to frame, 0 to about 1, plus how unevenly a frame is filled.

    Spectral losses hardly mind a click per frame with the right envelope, and a generator finds it first. In speech
    the samples at one place of the frames average out, and their energy is the same at all places.
    """
    frames = wave.reshape(-1, hop)
    level = frames.detach().square().mean(1, keepdim=True).sqrt().clamp_min(MAGNITUDE_FLOOR)
    even = frames / level
    power = even.square().mean(0)
    mean = power.mean().clamp_min(MAGNITUDE_FLOOR)
    return even.mean(0).square().mean() / mean + power.var() / mean.square()


class MelLoss(nn.Module):
    """L1 between natural-log mel spectrograms of one window length."""

    filters: Tensor

    def __init__(self, sample_rate_hz: int, n_fft: int, n_mels: int) -> None:
        super().__init__()
        self.spectrogram = Spectrogram(n_fft)
        basis = slaney_mel_basis(MelConfig(sample_rate=sample_rate_hz, n_fft=n_fft, win_length=n_fft, n_mels=n_mels))
        self.register_buffer("filters", torch.from_numpy(basis.copy()), persistent=False)

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        mels = [
            (self.filters @ self.spectrogram(wave)).clamp_min(MAGNITUDE_FLOOR).log() for wave in (predicted, target)
        ]
        return (mels[0] - mels[1]).abs().mean()


class MultiScaleMelLoss(nn.Module):
    """Mean of `MelLoss` over window lengths; short windows see transients, long ones harmonics."""

    def __init__(
        self,
        sample_rate_hz: int,
        n_ffts: Sequence[int] = (512, 1024, 2048),
        n_mels: Sequence[int] = (40, 80, 160),
    ) -> None:
        super().__init__()
        self.scales = nn.ModuleList(
            MelLoss(sample_rate_hz, n, m) for n, m in zip(n_ffts, n_mels, strict=True)
        )  # fmt: skip

    def forward(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Compare waveforms (B, N); returns a scalar in nats."""
        return torch.stack([scale(predicted, target) for scale in self.scales]).mean()


def discriminator_loss(real_scores: Sequence[Tensor], fake_scores: Sequence[Tensor]) -> Tensor:
    """Least-squares loss that teaches every discriminator to say 1 to real and 0 to generated audio."""
    terms = [(1 - r).square().mean() + f.square().mean() for r, f in zip(real_scores, fake_scores, strict=True)]
    return torch.stack(terms).mean()


def generator_loss(fake_scores: Sequence[Tensor]) -> Tensor:
    """Least-squares loss of the generator: every discriminator should say 1."""
    return torch.stack([(1 - f).square().mean() for f in fake_scores]).mean()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Tensor:
    """Mean L1 between the inner activations that discriminators have for real and for generated audio."""
    pairs = [(r, f) for rs, fs in zip(real, fake, strict=True) for r, f in zip(rs, fs, strict=True)]
    return torch.stack([(f - r.detach()).abs().mean() for r, f in pairs]).mean()
