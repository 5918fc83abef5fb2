"""Spectral features: the log-mel spectrogram of the prompt and the two Kaldi-like filter banks of the encoders.

Each stage is computed in the precision of its reference, as the differences reach the models: the features of
w2v-BERT in float64, those of CAMPPlus and the log-mel spectrogram in float32.

Axes: B batch, N samples, T frames, M mel bands, K bins of the spectrum.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from indextts2.config import MelConfig
from indextts2.errors import AudioError

LOG_MEL_FLOOR = 1e-5
MAGNITUDE_EPSILON = 1e-9

# Kaldi frames at 16 kHz: 25 ms every 10 ms.
FRAME_SAMPLES = 400
FRAME_SHIFT = 160
FBANK_FFT = 512
FBANK_BINS = 80
FBANK_MIN_HZ = 20.0
FBANK_MAX_HZ = 8000.0
FBANK_SAMPLE_RATE_HZ = 16_000
PREEMPHASIS = 0.97
# The smallest float32 above 1, less 1: Kaldi's floor of an energy.
ENERGY_FLOOR = 1.1920928955078125e-07

FRAMES_PER_FEATURE = 2
FEATURE_PADDING = 1.0
VARIANCE_EPSILON = 1e-7


# --- log-mel spectrogram (spec 07 section 9; BigVGAN's mel_spectrogram) ---


class LogMel(nn.Module):
    """Log-mel spectrogram of BigVGAN as a module without parameters; differentiable."""

    window: torch.Tensor
    mel_basis: torch.Tensor

    def __init__(self, config: MelConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)
        self.register_buffer("mel_basis", torch.from_numpy(slaney_mel_basis(config).copy()), persistent=False)

    def forward(self, samples: torch.Tensor) -> torch.Tensor:
        """(B, N) samples in [-1, 1] -> (B, M, T) natural logarithms, T = N // hop_length.

        Raises AudioError when N is too short to be padded by reflection.
        """
        config = self.config
        padding = (config.n_fft - config.hop_length) // 2
        if samples.shape[-1] <= max(padding, config.hop_length - 1):
            raise AudioError(
                f"{samples.shape[-1]} samples are too few for a mel frame; at least {padding + 1} are needed"
            )
        padded = F.pad(samples[:, None], (padding, padding), mode="reflect")[:, 0]
        spectrum = torch.stft(
            padded, config.n_fft, config.hop_length, config.win_length, self.window, center=False, return_complex=True
        )
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + MAGNITUDE_EPSILON)
        return torch.log(torch.clamp(self.mel_basis @ magnitude, min=LOG_MEL_FLOOR))


def log_mel(samples: np.ndarray, config: MelConfig | None = None) -> np.ndarray:
    """(N,) float32 at the rate of `config` -> (M, T) float32 log-mel spectrogram."""
    with torch.no_grad():
        return _log_mel_module(config or MelConfig())(torch.from_numpy(_vector(samples))[None])[0].numpy()


@lru_cache(maxsize=8)
def _log_mel_module(config: MelConfig) -> LogMel:
    return LogMel(config)


@lru_cache(maxsize=8)
def slaney_mel_basis(config: MelConfig) -> np.ndarray:
    """Triangles in Hz on Slaney's mel scale, normalised by area: (M, K) float32, read-only."""
    fmax = config.sample_rate / 2 if config.fmax is None else config.fmax
    low, high = _hz_to_slaney(np.array([config.fmin, fmax]))
    edges = _slaney_to_hz(np.linspace(low, high, config.n_mels + 2))
    left, centre, right = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    hz = np.fft.rfftfreq(config.n_fft, 1 / config.sample_rate)
    triangles = np.maximum(0, np.minimum((hz - left) / (centre - left), (right - hz) / (right - centre)))
    basis = (triangles * 2 / (right - left)).astype(np.float32)
    basis.flags.writeable = False
    return basis


# Slaney's scale: 200/3 Hz per mel up to 1000 Hz (15 mel), then 27 mel for each factor of 6.4.
_SLANEY_BREAK_HZ = 1000.0
_SLANEY_BREAK_MEL = 15.0
_SLANEY_LOG_STEP = np.log(6.4) / 27


def _hz_to_slaney(hz: np.ndarray) -> np.ndarray:
    logarithmic = _SLANEY_BREAK_MEL + np.log(np.maximum(hz, _SLANEY_BREAK_HZ) / _SLANEY_BREAK_HZ) / _SLANEY_LOG_STEP
    return np.where(hz < _SLANEY_BREAK_HZ, hz * 3 / 200, logarithmic)


def _slaney_to_hz(mel: np.ndarray) -> np.ndarray:
    logarithmic = _SLANEY_BREAK_HZ * np.exp((mel - _SLANEY_BREAK_MEL) * _SLANEY_LOG_STEP)
    return np.where(mel < _SLANEY_BREAK_MEL, mel * 200 / 3, logarithmic)


# --- filter banks of the encoders ---


def kaldi_fbank(samples_16k: np.ndarray) -> np.ndarray:
    """Kaldi's log filter bank, in float32: (N,) float32 at 16 kHz in [-1, 1] -> (T, 80) float32.

    T = 1 + (N - 400) // 160. The waveform is on purpose not scaled to 16-bit integers (spec 06 section 1).
    """
    frames = torch.from_numpy(_vector(samples_16k, FRAME_SAMPLES)).unfold(0, FRAME_SAMPLES, FRAME_SHIFT)
    frames = frames - frames.mean(dim=1, keepdim=True)
    previous = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
    window = torch.hann_window(FRAME_SAMPLES, periodic=False).pow(0.85)
    spectrum = torch.fft.rfft((frames - PREEMPHASIS * previous) * window, n=FBANK_FFT)
    energies = spectrum.abs().square() @ torch.from_numpy(_kaldi_mel_basis("float32"))
    return energies.clamp(min=ENERGY_FLOOR).log().numpy()


def fbank_mean_normalised(samples_16k: np.ndarray) -> np.ndarray:
    """Input of CAMPPlus: `kaldi_fbank` less its mean over time in each band, (T, 80) float32."""
    features = torch.from_numpy(kaldi_fbank(samples_16k))
    return (features - features.mean(dim=0, keepdim=True)).numpy()


def seamless_features(samples_16k: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Input of w2v-BERT, as SeamlessM4T's extractor computes it (spec 05 section 2).

    Args:
        samples_16k: (N,) float32 at 16 kHz in [-1, 1]; at least 560 samples (two frames).

    Returns:
        features (T, 160) float32: two normalised frames of 80 bands side by side, and mask (T,) int32. With an odd
        number of frames the last row is half real and half padding, and its mask is 0.
    """
    log_energies = _scaled_log_fbank(_vector(samples_16k, FRAME_SAMPLES + FRAME_SHIFT))
    # (80, T) in memory: the reference sums over contiguous time, which rounds differently from summing over rows.
    mean = log_energies.mean(axis=1, keepdims=True)
    variance = log_energies.var(axis=1, ddof=1, keepdims=True)
    frames = ((log_energies - mean) / np.sqrt(variance + np.float32(VARIANCE_EPSILON))).T
    padding = -len(frames) % FRAMES_PER_FEATURE
    mask = np.pad(np.ones(len(frames), np.int32), (0, padding))
    frames = np.pad(frames, ((0, padding), (0, 0)), constant_values=FEATURE_PADDING)
    features = np.ascontiguousarray(frames).reshape(-1, FRAMES_PER_FEATURE * FBANK_BINS)
    return features, mask[FRAMES_PER_FEATURE - 1 :: FRAMES_PER_FEATURE]


def _scaled_log_fbank(samples: np.ndarray) -> np.ndarray:
    """(N,) float32 -> (80, T) float32: log energies of 16-bit-scaled frames, in float64 but for the spectrum."""
    scaled = (samples * np.float32(32768)).astype(np.float64)
    frames = np.lib.stride_tricks.sliding_window_view(scaled, FRAME_SAMPLES)[::FRAME_SHIFT].copy()
    frames -= frames.mean(axis=1, keepdims=True)
    frames[:, 1:] -= PREEMPHASIS * frames[:, :-1]
    frames[:, 0] *= 1 - PREEMPHASIS
    window = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME_SAMPLES) / (FRAME_SAMPLES - 1))) ** 0.85
    spectrum = np.fft.rfft(frames * window, FBANK_FFT).astype(np.complex64)
    power = np.ascontiguousarray(np.square(np.abs(spectrum, dtype=np.float64)).T)
    energies = _kaldi_mel_basis("float64").T @ power
    return np.log(np.maximum(ENERGY_FLOOR, energies)).astype(np.float32)


@lru_cache(maxsize=2)
def _kaldi_mel_basis(dtype: str) -> np.ndarray:
    """Triangles on Kaldi's mel scale, computed in `dtype`: (K, 80). The bin at half the sample rate weighs nothing."""
    low, high = (1127 * np.log(1 + hz / 700) for hz in (FBANK_MIN_HZ, FBANK_MAX_HZ))
    bin_hz = FBANK_SAMPLE_RATE_HZ / FBANK_FFT * np.arange(FBANK_FFT // 2 + 1, dtype=dtype)
    mel = 1127 * np.log(1 + bin_hz / 700)[:, None]
    edges = float(low) + np.arange(FBANK_BINS + 2, dtype=dtype) * (float(high - low) / (FBANK_BINS + 1))
    left, centre, right = edges[:-2], edges[1:-1], edges[2:]
    basis: np.ndarray = np.maximum(0, np.minimum((mel - left) / (centre - left), (right - mel) / (right - centre)))
    basis[-1] = 0
    return basis.astype(dtype)


def _vector(samples: np.ndarray, min_samples: int = 1) -> np.ndarray:
    """`samples` as a contiguous float32 vector of at least `min_samples`, or AudioError."""
    if samples.ndim != 1:
        raise AudioError(f"features need a one-dimensional waveform, not an array of shape {samples.shape}")
    if len(samples) < min_samples:
        raise AudioError(f"{len(samples)} samples are too few for these features; at least {min_samples} are needed")
    return np.ascontiguousarray(samples, dtype=np.float32)
