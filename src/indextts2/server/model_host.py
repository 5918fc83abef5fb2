"""The model behind the server: loaded when the server starts, replaced when it dies, let go of when nobody asks.

A ModelHost is used like the SpeechEngine that it holds and may be called from any thread.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from indextts2.errors import UsageError
from indextts2.inference.openmp import release_workers

if TYPE_CHECKING:
    from indextts2.config import GenerationConfig
    from indextts2.inference.engine import SpeechRequest, Usage
    from indextts2.inference.pipeline import IndexTTS2, Speaker
    from indextts2.inference.voice import Voice
    from indextts2.types import AudioChunk

log = logging.getLogger(__name__)


class Job(Protocol):
    """What the server needs of a `SpeechJob`."""

    def __iter__(self) -> Iterator[AudioChunk]: ...

    def next_chunk(self, timeout_seconds: float | None = None) -> AudioChunk | None: ...

    def cancel(self) -> None: ...

    @property
    def done(self) -> bool: ...

    @property
    def usage(self) -> Usage: ...

    @property
    def timings(self) -> dict[str, float]: ...


class Engine(Protocol):
    """What the server needs of a `SpeechEngine`."""

    tts: IndexTTS2

    def submit(self, request: SpeechRequest) -> Any: ...

    def close(self, timeout_seconds: float = 30.0) -> bool: ...

    @property
    def alive(self) -> bool: ...

    @property
    def running(self) -> int: ...

    @property
    def waiting(self) -> int: ...


EngineFactory = Callable[[], Engine]


@dataclass(frozen=True)
class ModelFacts:
    """What is remembered of a model after it was let go of."""

    fingerprint: str
    sample_rate: int
    generation: GenerationConfig
    max_codes: int
    reads_emotion_from_words: bool
    languages: tuple[str, ...]


class ModelHost:
    """Holds at most one engine; `submit` and `tts` load it when it is not there."""

    def __init__(self, factory: EngineFactory) -> None:
        self._factory = factory
        self._lock = threading.Lock()
        self._engine: Engine | None = None
        self._closed = False
        self._packaged: dict[Path, Voice] = {}
        self.facts: ModelFacts | None = None
        self.last_use = monotonic()
        self.loads = 0

    def engine(self) -> Engine:
        """The engine, loaded first if need be; one whose thread has died is replaced.

        Raises:
            UsageError: the host is closed. Whatever loading the model raises.
        """
        with self._lock:
            if self._closed:
                raise UsageError("the server is shutting down")
            self.last_use = monotonic()
            if self._engine is not None and not self._engine.alive:
                log.error("the worker of the model has died; it is started again")
                self._drop(self._engine)
            if self._engine is None:
                start = monotonic()
                self._engine = self._factory()
                self._engine.tts.tokenizer.normalizer.read_in_processes()  # else no other thread gets on meanwhile
                self.facts = _facts(self._engine.tts)
                self.loads += 1
                log.info("model loaded in %.1f s", monotonic() - start)
            return self._engine

    @property
    def tts(self) -> IndexTTS2:
        """The model itself, loaded first if need be."""
        return self.engine().tts

    def languages(self) -> tuple[str, ...]:
        """Those that the model speaks; it is loaded if it never was."""
        if self.facts is None:
            self.engine()
        assert self.facts is not None
        return self.facts.languages

    def voice(self, speaker: Speaker) -> Voice:
        """The Voice of reference audio, see `IndexTTS2.voice`; to be called from any thread but the engine's.

        Recordings that come with the package, the only ones that are named by a path, are decoded once.
        """
        tts = self.tts
        if isinstance(speaker, Path) and speaker in self._packaged:
            return self._packaged[speaker]
        try:
            voice = tts.voice(speaker)
        finally:
            release_workers()
        if isinstance(speaker, Path):
            self._packaged[speaker] = voice
        return voice

    def submit(self, request: SpeechRequest) -> Job:
        """Queue a request with the engine, see `SpeechEngine.submit`."""
        job: Job = self.engine().submit(request)
        return job

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._engine is not None

    @property
    def alive(self) -> bool:
        """Whether jobs in hand can still go on."""
        return self._engine is not None and self._engine.alive

    @property
    def busy(self) -> bool:
        """Whether the engine has jobs in hand."""
        engine = self._engine
        return engine is not None and engine.running + engine.waiting > 0

    def unload_if_idle(self, seconds: float) -> bool:
        """Let go of the model if nobody has used it for so long; True if that was done."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            if self._engine is None or self.busy or monotonic() - self.last_use < seconds:
                return False
            self._drop(self._engine)
            log.info("model unloaded after %g s without a request", seconds)
            return True
        finally:
            self._lock.release()

    def close(self, timeout_seconds: float) -> None:
        """Let jobs in hand finish within the timeout and let go of the model for good."""
        with self._lock:
            self._closed = True
            if self._engine is not None:
                self._drop(self._engine, timeout_seconds)

    def _drop(self, engine: Engine, timeout_seconds: float = 5.0) -> None:
        engine.close(timeout_seconds)
        engine.tts.close()
        self._packaged.clear()
        self._engine = None
        del engine
        return_memory()


def return_memory() -> None:
    """Give what was freed back to the system, as far as the allocators let one."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # musl has no malloc_trim
            ctypes.CDLL(None).malloc_trim(0)


def _facts(tts: IndexTTS2) -> ModelFacts:
    from indextts2.config import GenerationConfig

    generation = tts.config.generation or GenerationConfig()
    return ModelFacts(
        fingerprint=tts.models.fingerprint,
        sample_rate=tts.sample_rate,
        generation=generation,
        max_codes=tts.config.gpt.max_mel_tokens,
        reads_emotion_from_words=tts.models.emotion_text_directory is not None,
        languages=tts.tokenizer.languages,
    )
