"""Changes of a recording that keep the words: another speaker by resampling, level, noise, colour, rate.

All functions but `stretch` take and give (N,) float32 samples.
"""

from __future__ import annotations

import numpy as np


def shift_speaker(samples: np.ndarray, factor: float, rate_hz: int) -> np.ndarray:
    """Play `samples` `factor` times faster: pitch and formants rise by it, the length shrinks.

    Factors of 0.88 to 1.13 make speakers that a verifier takes for others.
    """
    import soxr

    if factor == 1.0:
        return samples
    return np.asarray(soxr.resample(samples, rate_hz * factor, rate_hz, quality="MQ"), dtype=np.float32)


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
