"""One model, many requests: worker threads ("lanes") that speak for all of them, piece by piece."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor

from indextts2.config import InferenceConfig
from indextts2.errors import Cancelled, GenerationError, IndexTTS2Error, UsageError
from indextts2.inference.chunk_queue import MAX_CHUNKS, ChunkQueue, Stopwatch
from indextts2.inference.emotion import EmotionVector
from indextts2.inference.lanes import lane_count, use_threads
from indextts2.inference.openmp import release_workers
from indextts2.inference.progress import Run
from indextts2.inference.speaking import Render, SegmentSpeech, Steps, speak
from indextts2.inference.streaming import ChunkMaker, Mode, as_typed_error, render_of
from indextts2.inference.voice import Voice
from indextts2.models.gpt.generation import Request, feed
from indextts2.types import AudioChunk

if TYPE_CHECKING:
    from indextts2.config import ResolvedConfig
    from indextts2.inference.low_latency import ChunkPlan
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2, Speaker

log = logging.getLogger(__name__)

PATIENCE_SECONDS = 2.0
PIECES_BEFORE_DECODING = 2
"""Text and voice, then the prefix of the first segment."""


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

    def _end(self, error: IndexTTS2Error | None) -> None:
        self._watch.mark("total")
        self._queue.close(error)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds since submission: `queued`, `first_audio`, `total`; and the time spent in each stage so far."""
        return {**self._run.timings, **self._watch.marks}

    @property
    def usage(self) -> Usage:
        """What it has used so far."""
        return Usage(self._run.text_tokens, self._run.codes)


@dataclass(eq=False)
class _Task:
    """A running job: its steps, the request that waits for a decoding step, if any, and whether a lane has it."""

    job: SpeechJob
    steps: Steps
    maker: ChunkMaker
    request: Request | None = None
    delivered_seconds: float = 0.0
    worked_seconds: float = 0.0
    """On the chunk that comes next, what precedes all decoding left out."""
    pieces_done: int = 0
    taken: bool = False

    @property
    def runnable(self) -> bool:
        """Whether its next step may be taken: its reader has room, or wants no more."""
        return self.job._queue.cancelled or not self.job._queue.full

    @property
    def due(self) -> float:
        """The time at which a listener runs dry who began to listen when the job was submitted.

        What works on one piece for very long is put back, so that it cannot hold up all that came later. What can join
        the decoding of others within moments comes first: a step of the decoder costs hardly more with it.
        """
        if self.pieces_done < PIECES_BEFORE_DECODING and _begins_soon(self.job.request):
            return -math.inf
        return self.job._watch.start + self.delivered_seconds + max(0.0, self.worked_seconds - PATIENCE_SECONDS)


def _begins_soon(request: SpeechRequest) -> bool:
    """Whether no audio or description is to be encoded before decoding begins."""
    encoded = isinstance(request.speaker, Voice)
    return encoded and (request.emotion is None or isinstance(request.emotion, EmotionVector))


@dataclass(eq=False)
class _Work:
    """What a lane does next: a decoding step of all these tasks, or the next step of one that is not decoding."""

    tasks: list[_Task]
    decoding: bool
    threads: int = 1

    @property
    def due(self) -> float:
        return min(task.due for task in self.tasks)


class SpeechEngine:
    """Speaks up to `max_running` requests together.

    Lanes, each a thread, take one piece of work at a time: a decoding step of all requests that are being decoded, in
    one batch which they join and leave at any step; or another step of one request - of a flow, a vocoder, a text. The
    piece that comes first is that of the request whose listener runs dry first. While several pieces are computed the
    cores are divided among them. Each request draws from its own random generator, so it sounds as it would alone.

    A request whose reader does not keep up rests, and goes on when the reader does. `close` the engine, or use it in a
    `with` statement, to end its threads.
    """

    def __init__(
        self,
        tts: IndexTTS2,
        max_running: int = 4,
        *,
        plan: ChunkPlan | None = None,
        max_chunks: int = MAX_CHUNKS,
        lanes: int | None = None,
    ) -> None:
        """`plan`: the chunks of the low-latency mode. `max_chunks`: so many are made ahead of a reader.

        `lanes`: pieces of work that are computed at a time. None: one for each thread that torch uses for one
        operation on a CPU, one on other devices; never more than `max_running`.
        """
        if max_running < 1:
            raise UsageError(f"max_running must be at least 1, not {max_running}")
        self.tts = tts
        self.max_running = max_running
        self.lanes = lane_count(lanes, tts.models.device, max_running)
        self._threads = torch.get_num_threads()
        self._plan = plan
        self._max_chunks = max_chunks
        self._changed = threading.Condition()
        self._waiting: deque[SpeechJob] = deque()
        self._tasks: list[_Task] = []
        self._at_work: dict[int, _Work] = {}
        self._closing = False
        release_workers()  # of the thread that has loaded the model
        self._lanes = [
            threading.Thread(target=self._work, args=(lane,), name=f"speech-lane-{lane}", daemon=True)
            for lane in range(self.lanes)
        ]
        for thread in self._lanes:
            thread.start()

    # From any thread

    def submit(self, request: SpeechRequest) -> SpeechJob:
        """Queue a request and return at once.

        Raises:
            UsageError: the engine is closed, the mode is unknown, or an option does not go with it.
        """
        options = request.config.resolved(self.tts.config)
        self._render(request.mode, options)
        job = SpeechJob(request, options, ChunkQueue(self._max_chunks, self._wake), self.tts.sample_rate)
        with self._changed:
            if self._closing:
                raise UsageError("the engine is closed and takes no more requests; make a new one")
            self._waiting.append(job)
            self._changed.notify_all()
        return job

    @property
    def alive(self) -> bool:
        """Whether its threads run: false once it is closed, or something has killed one of them."""
        return all(thread.is_alive() for thread in self._lanes)

    @property
    def running(self) -> int:
        """Jobs that are being spoken."""
        return len(self._tasks)

    @property
    def waiting(self) -> int:
        """Jobs that have not begun."""
        return len(self._waiting)

    def close(self, timeout_seconds: float = 30.0) -> bool:
        """Take no more requests, let those in hand finish, and end the threads.

        What is not finished after `timeout_seconds` is cancelled. Returns whether everything had finished.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = time.monotonic() + timeout_seconds
        for thread in self._lanes:
            thread.join(max(0.0, end - time.monotonic()))
        drained = not any(thread.is_alive() for thread in self._lanes)
        if not drained:
            with self._changed:
                jobs = [*self._waiting, *(task.job for task in self._tasks)]
            for job in jobs:
                job.cancel()
            for thread in self._lanes:
                thread.join()
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

    def _render(self, mode: str, options: ResolvedConfig) -> Render:
        return render_of(mode, options, self._plan if mode != "exact" else None)

    # In the lanes

    def _work(self, lane: int) -> None:
        try:
            self._serve(lane)
        finally:  # whatever ends a lane, nobody may wait for it for ever
            with self._changed:
                self._closing = True
                jobs = [*self._waiting, *(task.job for task in self._tasks)]
                self._waiting.clear()
                self._tasks.clear()
                self._changed.notify_all()
            for job in jobs:
                job._end(GenerationError("the engine has died; make a new one and ask again"))

    @torch.inference_mode()
    def _serve(self, lane: int) -> None:
        work: _Work | None = None
        while (work := self._next(lane, work)) is not None:
            use_threads(work.threads, self._threads)
            try:
                if work.decoding:
                    self._decode(work.tasks)
                else:
                    self._resume(work.tasks[0])
            except Exception as error:  # of the engine itself: those in hand are lost, those to come are not
                log.exception("the engine failed")
                for task in work.tasks:
                    self._end(task, error)

    def _next(self, lane: int, done: _Work | None) -> _Work | None:
        """Put back what is done and take the most urgent piece, waiting for one; None at the end.

        The first lane is never idle while there is work: so one that is alone is always done by the same thread, whose
        workers spin. Those of the other lanes are let go of.
        """
        with self._changed:
            if done is not None:
                self._put_back(lane, done)
            self._admit()
            while not (ready := self._ready()) or (lane and 0 not in self._at_work):
                if self._at_end():
                    return None
                if done is not None:
                    self._changed.notify_all()  # the first lane goes on with what is ready
                    done = None
                if lane:
                    release_workers()
                self._changed.wait()
                self._admit()
            return self._take(lane, ready)

    def _take(self, lane: int, ready: list[_Work]) -> _Work:
        work = min(ready, key=lambda w: w.due)
        for task in work.tasks:
            task.taken = True
        self._at_work[lane] = work
        at_a_time = min(self.lanes, len(self._at_work) + len(ready) - 1)
        work.threads = max(1, self._threads // at_a_time)
        if len(ready) > 1:
            self._changed.notify_all()
        return work

    def _put_back(self, lane: int, work: _Work) -> None:
        del self._at_work[lane]
        for task in work.tasks:
            task.taken = False
            task.pieces_done += 1

    def _ready(self) -> list[_Work]:
        """The pieces that a lane can take now; that of the decoder first, so that it wins where both are as urgent.

        Texts and references are read one at a time: not all that reads them need be safe for threads.
        """
        tasks = [task for task in self._tasks if not task.taken and task.runnable]
        decoding = [task for task in tasks if task.request is not None]
        pieces = []
        if decoding and not any(work.decoding for work in self._at_work.values()):
            pieces.append(_Work(decoding, True))
        reading = any(task.taken and not task.pieces_done for task in self._tasks)
        for task in tasks:
            if task.request is None and (task.pieces_done or not reading):
                pieces.append(_Work([task], False))
        return pieces

    def _at_end(self) -> bool:
        return self._closing and not self._waiting and not self._tasks

    def _admit(self) -> None:
        """Begin what waits, in order, as far as there is room; drop what was cancelled."""
        for job in [job for job in self._waiting if job._queue.cancelled]:
            self._waiting.remove(job)
            job._end(Cancelled("the synthesis was cancelled before it began"))
        while self._waiting and len(self._tasks) < self.max_running:
            self._tasks.append(self._begin(self._waiting.popleft()))

    def _begin(self, job: SpeechJob) -> _Task:
        job._watch.mark("queued")
        request, options = job.request, job._options
        render = self._render(request.mode, options)
        steps = speak(self.tts, request.text, request.speaker, request.emotion, options, job._run, render)
        return _Task(job, steps, ChunkMaker(self.tts, options, whole_text=True))

    def _decode(self, tasks: list[_Task]) -> None:
        """One step of the decoder for all `tasks` that still want it, then let each look at its codes."""
        start = time.perf_counter()
        stepped = []
        for task, error in self._advance([t for t in tasks if not t.job._queue.cancelled]):
            if error is None:
                stepped.append(task)
            else:
                self._end(task, error)
        seconds = time.perf_counter() - start
        for task in [*stepped, *(t for t in tasks if t.job._queue.cancelled and t not in stepped)]:
            if task in self._tasks:
                task.worked_seconds += seconds
                self._resume(task)

    def _advance(self, tasks: list[_Task]) -> list[tuple[_Task, Exception | None]]:
        """Decode these a little further; the error of each that failed."""
        if (bursts := self.tts.models.gpt.bursts) is not None:
            errors = bursts.advance([task.request for task in tasks if task.request is not None])
            return list(zip(tasks, errors, strict=True))
        outcomes: list[tuple[_Task, Exception | None]] = []
        for task, answer in self._feed(tasks):
            try:
                if isinstance(answer, Exception):
                    raise answer
                assert task.request is not None
                task.request.accept(*answer)
                outcomes.append((task, None))
            except Exception as error:
                outcomes.append((task, error))
        return outcomes

    def _feed(self, tasks: list[_Task]) -> list[tuple[_Task, tuple[Tensor, Tensor] | Exception]]:
        """What the model answers each task. If the batch fails, each is tried alone, so that only the guilty fail."""
        if not tasks:
            return []
        gpt = self.tts.models.gpt
        feeds = [task.request.feed() for task in tasks if task.request is not None]
        try:
            return list(zip(tasks, feed(gpt, feeds), strict=True))
        except Exception:
            log.exception("a step of %d requests failed; each is tried alone", len(tasks))
        answers: list[tuple[_Task, tuple[Tensor, Tensor] | Exception]] = []
        for task, one in zip(tasks, feeds, strict=True):
            try:
                answers.append((task, feed(gpt, [one])[0]))
            except Exception as error:
                answers.append((task, error))
        return answers

    def _resume(self, task: _Task) -> None:
        """Let a task go on to its next step."""
        start = time.perf_counter()
        try:
            step = next(task.steps)
        except StopIteration:
            self._end(task, None)
        except Exception as error:
            self._end(task, error)
        else:
            if task.pieces_done >= PIECES_BEFORE_DECODING:
                task.worked_seconds += time.perf_counter() - start
            task.request = step if isinstance(step, Request) else None
            if isinstance(step, SegmentSpeech):
                self._deliver(task, step)

    def _deliver(self, task: _Task, speech: SegmentSpeech) -> None:
        task.job._watch.mark("first_audio")
        chunk = task.maker.chunk(speech)
        task.delivered_seconds += len(chunk.samples) / chunk.sample_rate
        task.worked_seconds = 0.0
        try:
            task.job._queue.put(chunk)
        except Cancelled as error:
            self._end(task, error)

    def _end(self, task: _Task, error: Exception | None) -> None:
        if error is not None and not isinstance(error, IndexTTS2Error):
            log.error("a request failed", exc_info=error)
        with self._changed:
            mine = task in self._tasks  # not if the engine has died
            if mine:
                self._tasks.remove(task)
            self._changed.notify_all()
        task.steps.close()
        if error is not None:
            error.__traceback__ = None  # it would keep alive the frames of the steps, and caches in them
        if mine:
            task.job._end(None if error is None else as_typed_error(error))
