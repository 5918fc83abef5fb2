"""Speech while it is made: chunks of audio from a text, which may itself still be arriving.

`SpeechStream` computes a chunk when it is asked for one. `StreamingSynthesizer` computes ahead in a thread of its own,
a few chunks at most, so that nothing is missing while one is played.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np

from indextts2.config import InferenceConfig
from indextts2.errors import Cancelled, GenerationError, IndexTTS2Error, UsageError
from indextts2.inference.chunk_queue import MAX_CHUNKS, ChunkQueue
from indextts2.inference.low_latency import ChunkPlan, chunked_segments
from indextts2.inference.openmp import release_workers
from indextts2.inference.progress import CancelCheck, ProgressCallback, Run
from indextts2.inference.speaking import Render, SegmentSpeech, speak, speak_alone, whole_segments
from indextts2.types import AudioChunk

if TYPE_CHECKING:
    from indextts2.config import ResolvedConfig
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2, Speaker

Mode = Literal["exact", "low-latency"]
MODES: tuple[str, ...] = get_args(Mode)


def render_of(mode: str, options: ResolvedConfig, plan: ChunkPlan | None = None) -> Render:
    """How segments are spoken in `mode`.

    Raises:
        UsageError: the mode is unknown, or the options do not go with it.
    """
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
    if mode == "exact":
        if plan is not None:
            raise UsageError("a plan of chunks belongs to the mode low-latency; in exact mode a chunk is a segment")
        return whole_segments
    if options.target_seconds is not None:
        raise UsageError("target_seconds needs the codes of the whole text before the first sound; use the exact mode")
    return functools.partial(chunked_segments, plan=plan or ChunkPlan())


class ChunkMaker:
    """Turns finished pieces of speech into chunks, the silence between segments put before the later one."""

    def __init__(self, tts: IndexTTS2, options: ResolvedConfig, whole_text: bool) -> None:
        from indextts2.inference.pipeline import silence_samples

        self._tts = tts
        self._silence = silence_samples(options, tts.sample_rate)
        self._whole_text = whole_text
        self._count = 0
        self._ended = False

    def chunk(self, speech: SegmentSpeech) -> AudioChunk:
        """The chunk of a piece. Its text is that of the segment that begins with it, else empty."""
        parts = [self._silence, speech.samples] if speech.first and speech.index else [speech.samples]
        text = self._tts.tokenizer.to_text(speech.pieces) if speech.first else ""
        self._ended = self._whole_text and speech.last and speech.index + 1 == speech.count
        return self._make(np.concatenate(parts), text)

    def ending(self) -> AudioChunk | None:
        """After everything: an empty last chunk, if no earlier one could say that it was the last."""
        if self._ended:
            return None
        self._ended = True
        return self._make(np.zeros(0, np.float32), "")

    def _make(self, samples: np.ndarray, text: str) -> AudioChunk:
        self._count += 1
        return AudioChunk(self._count - 1, samples, self._tts.sample_rate, text, self._ended)


class SpeechStream(Iterator[AudioChunk]):
    """The chunks of one text; see `IndexTTS2.stream`.

    The last chunk says `is_final`. Where a text was still arriving, its end is known only after the last sound: then
    the final chunk is empty. `seed` is the one in use, `metadata` the provenance for files, `run` holds the counts of
    text tokens, codes and segments, and `timings` the seconds spent in each stage, until the first audio
    (`first_audio`) and in all (`total`); time in which the reader did other things is counted too.
    """

    def __init__(
        self,
        tts: IndexTTS2,
        text: str | Iterable[str],
        speaker: Speaker,
        emotion: EmotionInput = None,
        config: InferenceConfig | None = None,
        *,
        mode: Mode = "exact",
        plan: ChunkPlan | None = None,
        cancel: CancelCheck | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> None:
        options = (config or InferenceConfig()).resolved(tts.config)
        self.seed = options.seed
        self.sample_rate = tts.sample_rate
        self.metadata = tts.metadata(options)
        self.run = Run(on_progress, cancel)
        steps = speak(tts, text, speaker, emotion, options, self.run, render_of(mode, options, plan))
        self._chunks = self._make(speak_alone(tts, steps), ChunkMaker(tts, options, isinstance(text, str)))

    def __next__(self) -> AudioChunk:
        return next(self._chunks)

    @property
    def timings(self) -> dict[str, float]:
        """Seconds, by stage."""
        return self.run.timings

    def _make(self, speech: Iterator[SegmentSpeech], maker: ChunkMaker) -> Iterator[AudioChunk]:
        start = time.perf_counter()
        for piece in speech:
            self.timings.setdefault("first_audio", time.perf_counter() - start)
            yield maker.chunk(piece)
        self.timings["total"] = time.perf_counter() - start
        if (ending := maker.ending()) is not None:
            yield ending


class StreamingSynthesizer:
    """Speaks one text at a time in a thread of its own, a few chunks ahead of the listener.

    Use it in a `with` statement, or `stop` it, to be sure that the thread ends.
    """

    def __init__(
        self,
        tts: IndexTTS2,
        mode: Mode = "low-latency",
        plan: ChunkPlan | None = None,
        max_chunks: int = MAX_CHUNKS,
    ) -> None:
        self.tts, self.mode, self.plan = tts, mode, plan
        self._max_chunks = max_chunks
        self._thread: threading.Thread | None = None
        self._queue: ChunkQueue | None = None
        self.stream: SpeechStream | None = None

    @property
    def is_running(self) -> bool:
        """Whether speech is being made."""
        return self._thread is not None and self._thread.is_alive()

    def start(
        self,
        text: str | Iterable[str],
        speaker: Speaker,
        emotion: EmotionInput = None,
        config: InferenceConfig | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> Iterator[AudioChunk]:
        """Begin at once and return the chunks; they end early, without an error, when `stop` is called.

        `on_progress` is called from the thread that speaks, and so is a `text` that arrives.

        Raises:
            UsageError: it is running already, or an option is wrong. The errors of `IndexTTS2.stream` come from the
                iteration.
        """
        if self.is_running:
            raise UsageError("the synthesizer is speaking; stop() it or make another one")
        queue = self._queue = ChunkQueue(self._max_chunks)
        self.stream = SpeechStream(
            self.tts, text, speaker, emotion, config, mode=self.mode, plan=self.plan,
            cancel=lambda: queue.cancelled, on_progress=on_progress,
        )  # fmt: skip
        release_workers()
        self._thread = threading.Thread(target=_fill, args=(queue, self.stream), name="speech", daemon=True)
        self._thread.start()
        return _until_cancelled(queue)

    def stream_and_play(
        self,
        text: str | Iterable[str],
        speaker: Speaker,
        emotion: EmotionInput = None,
        config: InferenceConfig | None = None,
    ) -> None:
        """Speak and play at the same time; returns when all has been heard.

        Raises:
            MissingExtraError: sounddevice is not installed. AudioError: there is no output device.
        """
        from indextts2.audio.playback import Player

        with Player(self.tts.sample_rate) as player:
            try:
                for chunk in self.start(text, speaker, emotion, config):
                    player.write(chunk.samples)
            finally:
                self.stop()

    def stop(self, timeout_seconds: float = 10.0) -> bool:
        """Stop at the next decode or flow step, and wait for that.

        Returns whether it has ended: a text that arrives cannot be interrupted while nothing comes.
        """
        if self._queue is not None:
            self._queue.cancel()
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        return not self.is_running

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop(10.0 if kind is None else 1.0)


def as_typed_error(error: Exception) -> IndexTTS2Error:
    """An error of this package as it is, any other one as the cause of a GenerationError."""
    if isinstance(error, IndexTTS2Error):
        return error
    typed = GenerationError(f"the synthesis failed: {type(error).__name__}: {error}")
    typed.__cause__ = error
    return typed


def _fill(queue: ChunkQueue, chunks: Iterable[AudioChunk]) -> None:
    """Put chunks into the queue until they end."""
    try:
        for chunk in chunks:
            queue.put(chunk)
    except Exception as error:
        queue.close(as_typed_error(error))
    else:
        queue.close()


def _until_cancelled(queue: ChunkQueue) -> Iterator[AudioChunk]:
    try:
        yield from queue
    except Cancelled:
        return
