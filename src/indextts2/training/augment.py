"""Changes of a recording that keep the words: another speaker, another mood, level, noise, colour, rate.

All but `stretch` take and give (N,) float32 samples.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from indextts2.errors import MissingExtraError

PITCH_LIMITS_HZ = (60.0, 520.0)
# What an arousal of 1 changes; -1 does the opposite. Directions: Banse and Scherer 1996, Juslin and Laukka 2003.
LOG_RATE, SEMITONES, LOG_RANGE, LEVEL_DB = 0.25, 3.0, 0.3, 4.0


def shift_speaker(samples: np.ndarray, factor: float, rate_hz: int) -> np.ndarray:
    """Play `samples` `factor` times faster: pitch and formants rise by it, the length shrinks.

    Factors of 0.88 to 1.13 make speakers that a verifier takes for others.
    """
    import soxr

    if factor == 1.0:
        return samples
    return np.asarray(soxr.resample(samples, rate_hz * factor, rate_hz, quality="MQ"), dtype=np.float32)


@dataclass(frozen=True)
class VoiceChange:
    """How a recording is spoken anew: factors, the level in dB; `pitch_range` is an exponent around the median.

    Source of the analysis and synthesis: Morise et al. 2016 (WORLD), as pyworld has it.
    """

    pitch: float = 1.0
    pitch_range: float = 1.0
    formants: float = 1.0
    rate: float = 1.0
    level_db: float = 0.0

    @classmethod
    def of_arousal(cls, arousal: float) -> VoiceChange:
        """The same voice, more excited above 0 and calmer below."""
        return cls(
            pitch=2 ** (SEMITONES * arousal / 12), pitch_range=math.exp(LOG_RANGE * arousal),
            rate=math.exp(LOG_RATE * arousal), level_db=LEVEL_DB * arousal,
        )  # fmt: skip

    def apply(self, samples: np.ndarray, rate_hz: int) -> np.ndarray:
        """The words of `samples` (N,), changed: about N / rate samples, float32."""
        try:
            import pyworld
        except ImportError as error:
            raise MissingExtraError("other voices and moods", "train") from error
        x = samples.astype(np.float64)
        rough, times = pyworld.dio(x, rate_hz)
        f0 = pyworld.stonemask(x, rough, times, rate_hz)
        envelope, noise = pyworld.cheaptrick(x, f0, times, rate_hz), pyworld.d4c(x, f0, times, rate_hz)
        voiced = f0 > 0
        if voiced.any():
            middle = float(np.median(f0[voiced]))
            f0[voiced] = (middle * self.pitch * (f0[voiced] / middle) ** self.pitch_range).clip(*PITCH_LIMITS_HZ)
        bins = np.arange(envelope.shape[1]) / self.formants
        low = bins.astype(int).clip(max=envelope.shape[1] - 2)
        part = np.minimum(bins - low, 1.0)
        envelope, noise = (
            np.ascontiguousarray(y[:, low] * (1 - part) + y[:, low + 1] * part) for y in (envelope, noise)
        )
        period_ms = 1000 * float(times[1] - times[0]) / self.rate
        spoken = pyworld.synthesize(f0, envelope, noise, rate_hz, period_ms) * 10 ** (self.level_db / 20)
        return (spoken / max(1.0, float(np.abs(spoken).max()))).astype(np.float32)


def stretch(rows: np.ndarray, factor: float) -> np.ndarray:
    """Codes or features (T, ...) spoken `factor` times longer: nearest rows, round(T * factor) of them, 1 at least."""
    length = max(1, round(len(rows) * factor))
    return rows[(np.arange(length) * len(rows)) // length]


def change_level(samples: np.ndarray, rng: np.random.Generator, range_db: float = 6.0) -> np.ndarray:
    """Multiply by a random gain of at most `range_db` up or down."""
    gain = 10 ** (rng.uniform(-range_db, range_db) / 20)
    return (samples * gain).astype(np.float32)


def add_noise(samples: np.ndarray, rng: np.random.Generator, snr_db: tuple[float, float] = (15.0, 50.0)) -> np.ndarray:
    """Add noise between white and brown at a random signal-to-noise ratio."""
    noise = rng.standard_normal(len(samples), dtype=np.float32)
    pole = rng.uniform(0.0, 0.97)
    noise = _one_pole(noise, pole)
    level = np.sqrt(np.mean(samples**2)) * 10 ** (-rng.uniform(*snr_db) / 20)
    return (samples + noise * (level / max(np.sqrt(np.mean(noise**2)), 1e-9))).astype(np.float32)


def change_colour(samples: np.ndarray, rng: np.random.Generator, strength: float = 0.4) -> np.ndarray:
    """Tilt and ripple the spectrum with a random filter of four taps, as other microphones would."""
    taps = np.array([1.0, *rng.uniform(-strength, strength, 3)])
    return np.convolve(samples, taps / np.sqrt(np.sum(taps**2)))[: len(samples)].astype(np.float32)


def _one_pole(x: np.ndarray, pole: float) -> np.ndarray:
    """y[n] = x[n] + pole * y[n - 1], by its impulse response cut at 64 samples."""
    return np.convolve(x, pole ** np.arange(64))[: len(x)]
