"""Values that travel between the stages. All are frozen; arrays are numpy float32 unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Waveform:
    """Mono audio: `samples` (N,) float32 in about [-1, 1] at `sample_rate` Hz."""

    samples: np.ndarray
    sample_rate: int

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate


@dataclass(frozen=True)
class AudioChunk:
    """A piece of streamed speech: `samples` (N,) float32 at `sample_rate` Hz, in order of `index`."""

    index: int
    samples: np.ndarray
    sample_rate: int
    text: str
    is_final: bool


@dataclass(frozen=True)
class Segment:
    """One segment of the text: its pieces, its codes and where it lies in the result (seconds)."""

    text: str
    tokens: tuple[str, ...]
    mel_codes: np.ndarray
    start: float
    end: float
    hit_limit: bool = False


@dataclass(frozen=True)
class SpeechResult:
    """What one synthesis gives. `mel` is (n_mels, frames) of all segments joined, without the silences between."""

    samples: np.ndarray
    sample_rate: int
    text: str
    mel_codes: np.ndarray
    mel: np.ndarray
    segments: tuple[Segment, ...]
    seed: int
    timings: dict[str, float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def duration(self) -> float:
        """Length in seconds."""
        return len(self.samples) / self.sample_rate

    @property
    def rtf(self) -> float:
        """Real-time factor: seconds of work per second of audio."""
        return self.timings.get("total", float("nan")) / self.duration if self.duration else float("nan")

    def save(self, path: str | Path, subtype: str | None = None) -> Path:
        """Write the audio; the extension names the format (wav, flac, ogg, mp3). Returns the path."""
        from indextts2.audio.writer import write_audio

        return write_audio(path, self.samples, self.sample_rate, subtype=subtype, metadata=self.metadata)
