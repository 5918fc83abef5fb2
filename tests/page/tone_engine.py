"""An engine that hums instead of speaking: the page needs sound that arrives in pieces, not a model."""

from __future__ import annotations

import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch

from indextts2.audio.loader import load_reference
from indextts2.config import GenerationConfig, GPTConfig
from indextts2.errors import Cancelled, GenerationError, TextError
from indextts2.inference.engine import SpeechRequest, Usage
from indextts2.inference.voice import Voice, content_key
from indextts2.types import AudioChunk

RATE = 22050
CHUNK_SECONDS = 0.25
FINGERPRINT = "0" * 64


def hum(text: str, seed: int) -> np.ndarray:
    """Vowels, one for every three letters; the same for the same text and seed."""
    rng = np.random.default_rng(zlib.crc32(f"{seed} {text}".encode()))
    syllables = max(3, len(text) // 3)
    times = np.arange(int(0.18 * RATE)) / RATE
    parts = []
    for index in range(syllables):
        pitch = 150 - 40 * index / syllables + rng.uniform(-15, 15) + 30 * times / times[-1]
        phase = 2 * np.pi * np.cumsum(pitch) / RATE
        first, second = rng.uniform(300, 800), rng.uniform(900, 2400)
        harmonics = np.arange(1, 40)
        loudness = sum(1 / (1 + ((harmonics * 140 - formant) / 150) ** 2) for formant in (first, second, 3200))
        sound = (loudness[:, None] * np.sin(harmonics[:, None] * phase)).sum(axis=0)
        sound += 0.05 * rng.standard_normal(len(times))
        parts.append(sound * np.sin(np.pi * np.linspace(0, 1, len(times))) ** 0.6 * rng.uniform(0.3, 1))
    samples = np.concatenate(parts)
    return (0.7 * samples / np.abs(samples).max()).astype(np.float32)


@dataclass
class HumJob:
    """`slowly` in a text makes it wait for `gate` after two chunks, `breaks` makes it fail there."""

    request: SpeechRequest
    gate: threading.Event
    cancelled: threading.Event = field(default_factory=threading.Event)
    done: bool = False
    usage: Usage = field(default_factory=Usage)
    timings: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._chunks = iter(self)

    def __iter__(self) -> Iterator[AudioChunk]:
        text = self.request.text
        if "unspeakable" in text:
            raise TextError("nothing of this text can be spoken; send words")
        samples = hum(text, self.request.config.seed or 0)
        size = int(CHUNK_SECONDS * RATE)
        starts = range(0, len(samples), size)
        for index, start in enumerate(starts):
            if index == 2 and "breaks" in text:
                time.sleep(0.7)  # a browser drops what it has not read when the connection breaks
                raise GenerationError("the model broke")
            while index >= 2 and "slowly" in text and not self.gate.wait(0.01):
                if self.cancelled.is_set():
                    raise Cancelled("cancelled")
            yield AudioChunk(index, samples[start : start + size], RATE, text, start == starts[-1])
        self.done = True

    def next_chunk(self, timeout_seconds: float | None = None) -> AudioChunk | None:
        return next(self._chunks, None)

    def cancel(self) -> None:
        self.cancelled.set()


class HumModel:
    """What the server asks of the model beside speech: facts, and voices."""

    def __init__(self) -> None:
        self.config = SimpleNamespace(generation=GenerationConfig(), gpt=GPTConfig())
        normalizer = SimpleNamespace(read_in_processes=lambda: None)
        self.tokenizer = SimpleNamespace(languages=("en",), normalizer=normalizer)
        self.models = SimpleNamespace(fingerprint=FINGERPRINT, emotion_text_directory=None)
        self.sample_rate = RATE
        self.voices: list[Voice] = []

    def voice(self, speaker: object) -> Voice:
        waveform = load_reference(speaker)
        tensors = [torch.zeros(1, 1) for _ in range(6)]
        voice = Voice(*tensors, FINGERPRINT, content_key(waveform), waveform.duration)
        self.voices.append(voice)
        return voice

    def close(self) -> None:
        self.voices.clear()


class HumEngine:
    """Never busy, always alive."""

    alive = True
    running = waiting = 0

    def __init__(self) -> None:
        self.tts = HumModel()
        self.jobs: list[HumJob] = []
        self.gate = threading.Event()

    def submit(self, request: SpeechRequest) -> HumJob:
        self.jobs.append(HumJob(request, self.gate))
        return self.jobs[-1]

    def close(self, timeout_seconds: float = 30.0) -> bool:
        return True
