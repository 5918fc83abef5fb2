"""Changing the sample rate, by the two chains that the models were fed with.

soxr (high quality) is used when a file is read; a Hann-windowed sinc, as torchaudio computes it, takes the speaker
prompt from the rate of the mel spectrogram to the rate of the encoders. The two differ in the last bits, and the
features of the same file as speaker and as emotion prompt with them (spec 01 section 6, 05 section 1).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import soxr
import torch
from torch.nn import functional as F

from indextts2.audio.loader import REFERENCE_SECONDS
from indextts2.config import MelConfig
from indextts2.errors import AudioError
from indextts2.types import Waveform

# w2v-BERT and CAMPPlus were trained on 16 kHz; both filter banks are laid out for it.
ENCODER_SAMPLE_RATE_HZ = 16_000

SINC_ZERO_CROSSINGS = 6
SINC_ROLLOFF = 0.99
# 64 MiB of float32. Rates with a small common divisor need one long filter for each output phase.
MAX_SINC_WEIGHTS = 1 << 24


def resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """soxr at quality HQ: (N,) float32 -> (ceil(N * to_hz / from_hz),) float32, the length that librosa gives."""
    _check_rates(from_hz, to_hz)
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if from_hz == to_hz:
        return samples
    length = math.ceil(len(samples) * (to_hz / from_hz))
    resampled = soxr.resample(samples, from_hz, to_hz, quality="HQ")[:length]
    return np.pad(resampled, (0, length - len(resampled)))


def sinc_resample(samples: np.ndarray, from_hz: int, to_hz: int) -> np.ndarray:
    """Hann-windowed sinc with 6 zero crossings: (N,) float32 -> (ceil(N * to_hz / from_hz),) float32.

    Bit-exact with torchaudio's default `Resample`. Raises AudioError for rates whose filters would not fit.
    """
    _check_rates(from_hz, to_hz)
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    if from_hz == to_hz:
        return samples
    divisor = math.gcd(from_hz, to_hz)
    stride, phases = from_hz // divisor, to_hz // divisor
    kernel, half_width = _sinc_kernel(stride, phases)
    padded = F.pad(torch.from_numpy(samples)[None, None], (half_width, half_width + stride))
    with torch.no_grad():
        resampled = F.conv1d(padded, kernel, stride=stride).transpose(1, 2).reshape(-1)
    return resampled[: math.ceil(phases * len(samples) / stride)].numpy()


def speaker_audio(
    waveform: Waveform, mel_rate_hz: int = MelConfig.sample_rate, max_seconds: float = REFERENCE_SECONDS
) -> tuple[np.ndarray, np.ndarray]:
    """The speaker prompt at `mel_rate_hz` (that of the mel spectrogram) and at 16 kHz, both of at most 15 s.

    Returns two vectors of float32. The second is computed from the first, after the cut.
    """
    audio = resample(waveform.samples, waveform.sample_rate, mel_rate_hz)[: int(max_seconds * mel_rate_hz)]
    return audio, sinc_resample(audio, mel_rate_hz, ENCODER_SAMPLE_RATE_HZ)


def emotion_audio(waveform: Waveform, max_seconds: float = REFERENCE_SECONDS) -> np.ndarray:
    """The emotion prompt at 16 kHz, straight from its own rate: (N,) float32, at most 15 s."""
    audio = resample(waveform.samples, waveform.sample_rate, ENCODER_SAMPLE_RATE_HZ)
    return audio[: int(max_seconds * ENCODER_SAMPLE_RATE_HZ)]


def _check_rates(from_hz: int, to_hz: int) -> None:
    if from_hz < 1 or to_hz < 1:
        raise AudioError(f"cannot resample from {from_hz} Hz to {to_hz} Hz; both rates must be positive")


@lru_cache(maxsize=4)
def _sinc_kernel(stride: int, phases: int) -> tuple[torch.Tensor, int]:
    """Filters (phases, 1, taps) float32 and the number of taps left of the first sample."""
    base = min(stride, phases) * SINC_ROLLOFF
    half_width = math.ceil(SINC_ZERO_CROSSINGS * stride / base)
    if phases * (2 * half_width + stride) > MAX_SINC_WEIGHTS:
        raise AudioError(f"the ratio {phases}/{stride} of sample rates is too fine for sinc resampling; use resample()")
    taps = torch.arange(-half_width, half_width + stride, dtype=torch.float64) / stride
    # The reference rounds the phase to float32; in float64 the samples would differ by 2e-5.
    phase = torch.arange(phases, dtype=torch.float32) / phases
    t = ((taps - phase[:, None].double()) * base).clamp(-SINC_ZERO_CROSSINGS, SINC_ZERO_CROSSINGS)
    window = torch.cos(t * math.pi / SINC_ZERO_CROSSINGS / 2) ** 2
    angle = t * math.pi
    sinc = torch.where(angle == 0, torch.ones_like(angle), angle.sin() / angle)
    kernel = sinc * (window * (base / stride))
    return kernel.float()[:, None], half_width
