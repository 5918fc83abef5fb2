"""One model, many requests: a worker thread that owns the model and speaks for all of them."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

from indextts2.config import InferenceConfig
from indextts2.errors import GenerationError, IndexTTS2Error, UsageError
from indextts2.inference.chunk_queue import MAX_CHUNKS, ChunkQueue, Stopwatch
from indextts2.inference.progress import Run
from indextts2.inference.streaming import Mode, check_mode, stream_segments
from indextts2.types import AudioChunk

if TYPE_CHECKING:
    from indextts2.config import ResolvedConfig
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2, Speaker

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SpeechRequest:
    """What is to be said, and how. A Voice as `speaker` saves the worker the encoding of its audio."""

    text: str
    speaker: Speaker
    emotion: EmotionInput = None
    config: InferenceConfig = field(default_factory=InferenceConfig)
    mode: Mode = "exact"


@dataclass(frozen=True)
class Usage:
    """What a job has used so far: tokens of text and semantic codes."""

    text_tokens: int = 0
    codes: int = 0


class SpeechJob:
    """A request in the hands of an engine. Iterate it to get the audio; `cancel` it at any time, from any thread.

    At most a few chunks are made ahead of the reader. The iteration ends with the error that ended the job, if any:
    Cancelled, TextError, AudioError, UsageError, CheckpointError or GenerationError.
    """

    def __init__(self, request: SpeechRequest, options: ResolvedConfig, queue: ChunkQueue, sample_rate: int) -> None:
        self.request = request
        self.sample_rate = sample_rate
        self.seed = options.seed
        self._options = options
        self._queue = queue
        self._watch = Stopwatch()
        self._run = Run(cancel=lambda: queue.cancelled)

    def __iter__(self) -> Iterator[AudioChunk]:
        return iter(self._queue)

    def next_chunk(self, timeout_seconds: float | None = None) -> AudioChunk | None:
        """The next chunk, None at the end. Raises TimeoutError if none came in time, or the job's error."""
        return self._queue.get(timeout_seconds)

    def cancel(self) -> None:
        """Stop at the next decode or flow step; chunks that were not taken are dropped."""
        self._queue.cancel()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the job is done; False if that took longer."""
        return self._queue.wait(timeout_seconds)

    @property
    def done(self) -> bool:
        """Whether the engine has finished with it, well or not; chunks may still wait to be taken."""
        return self._queue.done

    @property
    def error(self) -> BaseException | None:
        """The error that ended it."""
        return self._queue.error

    @property
    def timings(self) -> dict[str, float]:
        """Seconds since submission: `queued`, `first_audio`, `total`; and the time spent in each stage so far."""
        return {**self._run.timings, **self._watch.marks}

    @property
    def usage(self) -> Usage:
        """What it has used so far."""
        return Usage(self._run.text_tokens, self._run.codes)


class SpeechEngine:
    """Runs jobs on one model.

    `close` it, or use it in a `with` statement, to end its thread.
    """

    def __init__(self, tts: IndexTTS2, max_running: int = 4, max_chunks: int = MAX_CHUNKS) -> None:
        if max_running < 1:
            raise UsageError(f"max_running must be at least 1, not {max_running}")
        self.tts = tts
        self.max_running = max_running
        self._max_chunks = max_chunks
        self._changed = threading.Condition()
        self._waiting: deque[SpeechJob] = deque()
        self._running: list[SpeechJob] = []
        self._closing = False
        self._thread = threading.Thread(target=self._work, name="speech-engine", daemon=True)
        self._thread.start()

    def submit(self, request: SpeechRequest) -> SpeechJob:
        """Queue a request and return at once.

        Raises:
            UsageError: the engine is closing, or the mode is unknown.
        """
        check_mode(request.mode)
        options = request.config.resolved(self.tts.config)
        job = SpeechJob(request, options, ChunkQueue(self._max_chunks, self._wake), self.tts.sample_rate)
        with self._changed:
            if self._closing:
                raise UsageError("the engine is closed and takes no more requests; make a new one")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    @property
    def running(self) -> int:
        """Jobs that are being spoken."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    def close(self, timeout_seconds: float = 30.0) -> bool:
        """Take no more requests, let those in hand finish, and end the thread.

        What is not finished after `timeout_seconds` is cancelled. Returns whether everything had finished.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(timeout_seconds)
        drained = not self._thread.is_alive()
        while self._thread.is_alive():
            for job in [*self._waiting, *self._running]:
                job.cancel()
            self._thread.join(0.05)
        return drained

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closing)
                if not self._waiting:
                    return
                job = self._waiting.popleft()
                self._running.append(job)
            self._speak(job)
            with self._changed:
                self._running.remove(job)

    def _speak(self, job: SpeechJob) -> None:
        request, queue, run = job.request, job._queue, job._run
        job._watch.mark("queued")
        error: IndexTTS2Error | None = None
        try:
            run.check()
            for chunk in stream_segments(self.tts, request.text, request.speaker, request.emotion, job._options, run):
                job._watch.mark("first_audio")
                queue.put(chunk)
        except IndexTTS2Error as failure:
            error = failure
        except Exception as failure:
            log.exception("a request failed")
            error = GenerationError(f"the synthesis failed: {type(failure).__name__}: {failure}")
        job._watch.mark("total")
        queue.close(error)
