"""From the fields of a request to chunks of audio, in turn with all other requests."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from indextts2 import __version__
from indextts2.config import InferenceConfig
from indextts2.errors import Cancelled, GenerationError, UsageError
from indextts2.inference.emotion import Emotion
from indextts2.inference.engine import SpeechRequest, Usage
from indextts2.inference.pipeline import Speaker
from indextts2.inference.voice import Voice
from indextts2.server.admission import Admission
from indextts2.server.errors import ApiError, as_api_error
from indextts2.server.intake import AudioIntake
from indextts2.server.metrics import Metrics, Sound
from indextts2.server.model_host import Engine, Job, ModelFacts, ModelHost
from indextts2.server.schemas import MAX_SEED, SpeechOptions, emotion_of
from indextts2.server.settings import ServerSettings
from indextts2.server.tempo import Tempo, split_speed
from indextts2.server.voices import VoiceLibrary
from indextts2.types import AudioChunk, Waveform

log = logging.getLogger(__name__)
T = TypeVar("T")

# How often a thread that waits for audio looks whether the worker still lives.
POLL_SECONDS = 0.5


@dataclass
class Speech(Sound):
    """One text being spoken, and what is known of it so far."""

    text: str
    seed: int
    usage: Usage = field(default_factory=Usage)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def provenance(self) -> str:
        """That it is synthetic, by which version and model, in one line."""
        return f"synthetic speech; {self.tags['software']}; {self.tags['comment']}"


class SpeechService:
    """Speaks for all endpoints."""

    def __init__(
        self, settings: ServerSettings, host: ModelHost, library: VoiceLibrary, admission: Admission, metrics: Metrics
    ) -> None:
        self.settings = settings
        self.host = host
        self.library = library
        self.admission = admission
        self.metrics = metrics
        self.intake = AudioIntake(settings)
        # One thread waits for the audio of each turn; the others encode voices.
        self._threads = ThreadPoolExecutor(2 * settings.max_running + 2, thread_name_prefix="speech")

    def close(self) -> None:
        """Let the threads end."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def begin(self, text: str, options: SpeechOptions) -> Speech:
        """A text that is about to be spoken, with its seed; negative ones stand for those that are 2^63 higher."""
        return Speech(text, secrets.randbits(32) if options.seed is None else options.seed & MAX_SEED)

    def check_model(self, name: str) -> None:
        """ApiError 404 unless the model goes by this name."""
        names = (self.settings.model_name, *self.settings.model_aliases)
        if name not in names:
            raise ApiError(404, f"there is no model {name[:100]!r}; there is: {', '.join(names)}", param="model",
                           code="model_not_found")  # fmt: skip

    async def facts(self) -> ModelFacts:
        """What is known of the model, which is loaded if it never was."""
        if self.host.facts is None:
            await self.in_thread(self.host.engine)
        assert self.host.facts is not None
        return self.host.facts

    async def speak(self, speech: Speech, options: SpeechOptions) -> AsyncGenerator[AudioChunk]:
        """The audio of `speech`, once it is its turn. Leaving the generator early stops the work.

        Raises:
            ApiError, IndexTTS2Error: the request cannot be spoken.
        """
        reason = "error"
        try:
            facts = await self.facts()
            speech.tags = provenance(facts, speech.seed)
            speaker = await self._reference(options)
            emotion_audio = await self._audio(options.emotion_audio, "emotion_audio")
            async with self.admission.turn():
                speech.sample_rate = facts.sample_rate
                request = SpeechRequest(
                    speech.text,
                    await self._voice(speaker, options.voice_name),
                    _emotion(options, emotion_audio, facts),
                    _config(options, speech.seed, facts, self.settings.preset),
                    options.latency,
                )
                async with aclosing(self._chunks(request, speech, options.speed)) as chunks:
                    async for chunk in chunks:
                        yield chunk
            reason = "stop"
        except (GeneratorExit, asyncio.CancelledError, Cancelled):
            reason = "cancelled"
            raise
        finally:
            self._record(speech, reason)

    async def make_voice(self, waveform: Waveform) -> Voice:
        """The Voice of decoded reference audio, computed once per content."""

        return await self.in_thread(lambda: self.host.voice(waveform))

    def in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        """Run blocking work beside the event loop; what it logs carries the id of the request."""
        return asyncio.get_running_loop().run_in_executor(self._threads, copy_context().run, work)

    async def _reference(self, options: SpeechOptions) -> Waveform | None:
        if options.ref_audio is None:
            # A name that does not exist is told before anybody waits.
            self._named(options.voice_name)
        return await self._audio(options.ref_audio, "ref_audio")

    async def _audio(self, url: str | None, param: str) -> Waveform | None:
        if url is None:
            return None
        try:
            return await self.intake.decode(await self.intake.from_url(url))
        except Exception as error:
            raise as_api_error(error, param) from error

    async def _voice(self, reference: Waveform | None, name: str | None) -> Voice:
        if reference is not None:
            return await self.make_voice(reference)
        speaker = self._named(name)
        voice = await self.in_thread(lambda: self.host.voice(speaker) if not isinstance(speaker, Voice) else speaker)
        if self.host.facts is not None and voice.model != self.host.facts.fingerprint:
            raise ApiError(409, f"the voice {name!r} was made for another model; delete it and upload it again",
                           param="voice", code="voice_of_other_model")  # fmt: skip
        return voice

    def _named(self, name: str | None) -> Speaker:
        try:
            return self.library.speaker(name)
        except UsageError as error:
            raise ApiError(400, str(error), param="voice", code="voice_not_found") from None

    async def _chunks(self, request: SpeechRequest, speech: Speech, speed: float) -> AsyncGenerator[AudioChunk]:
        """The chunks of one job of the engine, at the speed asked for."""
        tempo = Tempo(split_speed(speed)[1], speech.sample_rate)
        engine, job = await self._submit(request)
        try:
            while (chunk := await self.in_thread(lambda: _next(engine, job, tempo))) is not None:
                speech.add(len(chunk.samples), speech.sample_rate)
                yield chunk
            speech.usage = job.usage
        finally:
            job.cancel()

    async def _submit(self, request: SpeechRequest) -> tuple[Engine, Job]:
        def submit() -> tuple[Engine, Job]:
            engine = self.host.engine()
            return engine, engine.submit(request)

        submitted = self.in_thread(submit)
        try:
            return await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_cancel_job)
            raise

    def _record(self, speech: Speech, reason: str) -> None:
        self.metrics.spoken(speech, reason)
        fields = {"characters": len(speech.text), "seed": speech.seed, **speech.log_fields()}
        log.info("speech %s", reason, extra=fields)


def provenance(facts: ModelFacts, seed: int) -> dict[str, str]:
    """What is written into every file; the writer adds that the speech is synthetic."""
    return {
        "title": "Synthetic speech",
        "comment": f"seed {seed}; model {facts.fingerprint[:16]}",
        "software": f"indextts2 {__version__}",
    }


def _emotion(options: SpeechOptions, audio: Waveform | None, facts: ModelFacts) -> Emotion | None:
    try:
        return emotion_of(options, audio, facts.reads_emotion_from_words)
    except UsageError as error:
        raise ApiError(400, str(error), param="emotion_text", code="invalid_value") from None


def _config(options: SpeechOptions, seed: int, facts: ModelFacts, preset: str) -> InferenceConfig:
    """Options of the library; the number of codes is bounded by what the model can hold."""
    codes = facts.generation.max_mel_tokens if options.max_new_tokens is None else options.max_new_tokens
    codes = min(codes, facts.max_codes)
    least = min(facts.generation.min_new_tokens, codes)
    generation = replace(facts.generation, max_mel_tokens=codes, min_new_tokens=least)
    return InferenceConfig(
        generation=generation,
        duration_factor=split_speed(options.speed)[0],
        seed=seed,
        preset=options.preset or preset,
    )


def _next(engine: Engine, job: Job, tempo: Tempo) -> AudioChunk | None:
    """The next chunk at its tempo, None at the end. GenerationError when the worker died meanwhile."""
    while True:
        try:
            chunk = job.next_chunk(POLL_SECONDS)
        except TimeoutError:
            if not engine.alive and not job.done:
                raise GenerationError("the worker of the model died; it is started again, try once more") from None
            continue
        if chunk is None:
            return None
        samples = tempo.stretch(chunk.samples, chunk.is_final)
        return replace(chunk, samples=np.ascontiguousarray(samples, np.float32))


def _cancel_job(submitted: asyncio.Future[tuple[Engine, Job]]) -> None:
    """Cancel a job whose client went away while it was being submitted."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result()[1].cancel()
