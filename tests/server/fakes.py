"""A SpeechEngine without a model, whose every move a test can steer; and a server around it on a real port."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import uvicorn
from fastapi import FastAPI

from indextts2.config import GenerationConfig
from indextts2.errors import IndexTTS2Error, TextError, UsageError
from indextts2.inference.chunk_queue import ChunkQueue
from indextts2.inference.engine import SpeechRequest, Usage
from indextts2.inference.voice import Voice
from indextts2.types import AudioChunk

SAMPLE_RATE = 22_050
FINGERPRINT = "f" * 32
WORD_SECONDS = 0.05


def make_voice(fingerprint: str = FINGERPRINT) -> Voice:
    values = [torch.full((1, 2, 3), float(index)) for index in range(6)]
    return Voice(*values, model=fingerprint, source="s" * 64, seconds=2.0)


class FakeTTS:
    """What the server asks of an IndexTTS2."""

    sample_rate = SAMPLE_RATE

    def __init__(self, fingerprint: str = FINGERPRINT, emotion_text_directory: Path | None = None) -> None:
        self.config = SimpleNamespace(
            generation=GenerationConfig(max_mel_tokens=500), gpt=SimpleNamespace(max_mel_tokens=800)
        )
        self.tokenizer = SimpleNamespace(
            languages=("en",), normalizer=SimpleNamespace(read_in_processes=self._read_in_processes)
        )
        self.models = SimpleNamespace(fingerprint=fingerprint, emotion_text_directory=emotion_text_directory)
        self.encoded: list[Any] = []
        self.reads_in_processes = False
        self.closed = False

    def _read_in_processes(self) -> None:
        self.reads_in_processes = True

    def voice(self, speaker: Any) -> Voice:
        if isinstance(speaker, Voice):
            return speaker
        self.encoded.append(speaker)
        return make_voice(self.models.fingerprint)

    def close(self) -> None:
        self.closed = True


class FakeJob:
    """Speaks a tone for each word, one chunk a word, in a thread of its own."""

    def __init__(self, engine: FakeEngine, request: SpeechRequest) -> None:
        self.engine, self.request = engine, request
        self.queue = ChunkQueue(4)
        self.usage = Usage()
        self.timings: dict[str, float] = {}
        self.thread = threading.Thread(target=self._work, daemon=True)

    def __iter__(self) -> Iterator[AudioChunk]:
        return iter(self.queue)

    def next_chunk(self, timeout_seconds: float | None = None) -> AudioChunk | None:
        return self.queue.get(timeout_seconds)

    def cancel(self) -> None:
        self.queue.cancel()

    @property
    def done(self) -> bool:
        return self.queue.done

    def _work(self) -> None:
        error: IndexTTS2Error | None = None
        words = self.request.text.split()
        try:
            if not any(character.isalnum() for character in self.request.text):
                raise TextError("nothing in the text can be spoken")
            for index, word in enumerate(words):
                self._wait()
                if self.queue.cancelled:
                    break
                if index == self.engine.script.fail_at_word:
                    raise self.engine.script.failure
                if index == self.engine.script.die_at_word:
                    self.engine.script.die_at_word = None
                    self.engine.alive = False
                    return
                self.queue.put(AudioChunk(index, tone(index), SAMPLE_RATE, word, index + 1 == len(words)))
                self.usage = Usage(len(words), 10 * (index + 1))
        except IndexTTS2Error as failure:
            error = failure
        finally:
            self.engine.jobs.remove(self)
            if self.engine.alive:
                self.queue.close(error)

    def _wait(self) -> None:
        """Hold still while the gate is closed, looking for a cancel as the engine does at every step."""
        deadline = time.monotonic() + self.engine.script.seconds_per_word
        while (not self.engine.script.gate.is_set() or time.monotonic() < deadline) and not self.queue.cancelled:
            time.sleep(0.002)


def tone(index: int) -> np.ndarray:
    t = np.arange(int(WORD_SECONDS * SAMPLE_RATE), dtype=np.float32) / SAMPLE_RATE
    return (0.3 * np.sin(2 * np.pi * (220 + 20 * (index % 10)) * t)).astype(np.float32)


@dataclass
class Script:
    """How the engines of one server behave."""

    gate: threading.Event = field(default_factory=threading.Event)
    seconds_per_word: float = 0.0
    fail_at_word: int | None = None
    failure: IndexTTS2Error = field(default_factory=lambda: UsageError("the script says so"))
    die_at_word: int | None = None
    fingerprint: str = FINGERPRINT
    emotion_text_directory: Path | None = None
    engines: list[FakeEngine] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.gate.set()

    def make_engine(self) -> FakeEngine:
        self.engines.append(FakeEngine(self))
        return self.engines[-1]

    @property
    def requests(self) -> list[SpeechRequest]:
        return [request for engine in self.engines for request in engine.requests]

    @property
    def active(self) -> int:
        return sum(len(engine.jobs) for engine in self.engines)


class FakeEngine:
    """What the server asks of a SpeechEngine."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.tts = FakeTTS(script.fingerprint, script.emotion_text_directory)
        self.requests: list[SpeechRequest] = []
        self.jobs: list[FakeJob] = []
        self.alive = True
        self.waiting = 0

    def submit(self, request: SpeechRequest) -> FakeJob:
        if not self.alive:
            raise UsageError("the engine is closed")
        job = FakeJob(self, request)
        self.requests.append(request)
        self.jobs.append(job)
        job.thread.start()
        return job

    @property
    def running(self) -> int:
        return len(self.jobs)

    def close(self, timeout_seconds: float = 30.0) -> bool:
        self.alive = False
        for job in list(self.jobs):
            job.cancel()
        return True


@dataclass
class LiveServer:
    """A server on a port of this machine."""

    port: int
    app: FastAPI
    server: uvicorn.Server

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def serve_in_thread(app: FastAPI) -> Iterator[LiveServer]:
    """Serve `app` with the real HTTP and websocket stack."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1, timeout_keep_alive=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: server.run(sockets=[sock]), daemon=True)
    thread.start()
    wait_until(lambda: server.started)
    wait_until(lambda: app.state.server.status == "ready")
    try:
        yield LiveServer(sock.getsockname()[1], app, server)
    finally:
        server.should_exit = True
        thread.join(10)
        assert not thread.is_alive()


def wait_until(condition: Any, seconds: float = 10.0) -> float:
    """Wait for a condition; return how long it took."""
    start = time.monotonic()
    while not condition():
        assert time.monotonic() - start < seconds, "the condition did not come true in time"
        time.sleep(0.005)
    return time.monotonic() - start


def no_partial_files(directory: Path) -> bool:
    return not [path for path in directory.iterdir() if path.name.startswith(".")]
