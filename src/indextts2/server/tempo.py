"""Speech faster or slower than the model itself can speak, at the same pitch (waveform-similarity overlap-add).

The model stretches its own speech between half and double length. OpenAI's speeds go from 0.25 to 4; what is left is
done here: short overlapping pieces are laid out closer together or further apart, each taken from where it fits best
to the end of the one before.
"""

from __future__ import annotations

import numpy as np

PIECE_SECONDS = 0.04
SEARCH_SECONDS = 0.01
MODEL_FACTORS = (0.5, 2.0)


def split_speed(speed: float) -> tuple[float, float]:
    """`speed` as a duration factor of the model in [0.5, 2], and the speed that is left (1: none)."""
    factor = min(max(1 / speed, MODEL_FACTORS[0]), MODEL_FACTORS[1])
    rest = speed * factor
    return factor, 1.0 if abs(rest - 1) < 1e-9 else rest


class Tempo:
    """Changes the speed of audio that arrives in chunks; at speed 1 it changes nothing."""

    def __init__(self, speed: float, sample_rate: int) -> None:
        self.speed = speed
        self._hop = round(PIECE_SECONDS * sample_rate / 2)
        self._search = round(SEARCH_SECONDS * sample_rate)
        self._window = np.hanning(2 * self._hop + 1)[:-1].astype(np.float32)
        self._input = np.zeros(0, np.float32)
        self._position = 0.0
        self._tail: np.ndarray | None = None
        self._expected = np.zeros(0, np.float32)

    def stretch(self, samples: np.ndarray, last: bool) -> np.ndarray:
        """Take (N,) samples and return those that are ready; with `last` all the rest."""
        if self.speed == 1.0:
            return samples
        self._input = np.concatenate((self._input, samples))
        parts = []
        while self._position + 3 * self._hop + 2 * self._search <= len(self._input):
            parts.append(self._step())
        self._forget()
        if last:
            parts.append(self._rest())
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def _step(self) -> np.ndarray:
        """One hop of output: the tail of the last piece over the head of the one that continues it best."""
        start = int(self._position)
        if self._tail is None:
            begin = start
            head = self._input[begin : begin + self._hop]
        else:
            begin = start + self._best_offset(self._input[start : start + self._hop + 2 * self._search])
            head = self._tail + self._input[begin : begin + self._hop] * self._window[: self._hop]
        middle = begin + self._hop
        self._expected = self._input[middle : middle + self._hop].copy()
        self._tail = self._expected * self._window[self._hop :]
        self._position += self._hop * self.speed
        return head

    def _best_offset(self, region: np.ndarray) -> int:
        """Where in `region` lies what is most like the expected continuation (normalised correlation)."""
        products = np.correlate(region, self._expected, mode="valid")
        energy = np.convolve(region**2, np.ones(self._hop, np.float32), mode="valid")
        return int(np.argmax(products / np.sqrt(np.maximum(energy, 1e-9))))

    def _forget(self) -> None:
        """Drop input that no piece will be taken from."""
        used = min(int(self._position), len(self._input))
        self._input = self._input[used:]
        self._position -= used

    def _rest(self) -> np.ndarray:
        """The end of the input, as it is, joined to what came before."""
        rest = self._input[min(int(self._position), len(self._input)) :]
        if self._tail is None:
            return rest
        size = min(len(rest), self._hop)
        joined = self._tail.copy()
        joined[:size] += rest[:size] * self._window[:size]
        return np.concatenate((joined, rest[self._hop :]))
