"""Speech over the Wyoming protocol, as Home Assistant asks for it.

    describe                                        -> info
    synthesize                                      -> audio-start, audio-chunk …, audio-stop
    synthesize-start, synthesize-chunk …, synthesize-stop
                                                    -> the same while text still arrives, then synthesize-stopped
    ping                                            -> pong

Text that arrives in pieces is spoken sentence by sentence. A `synthesize` between `synthesize-start` and
`synthesize-stop` repeats the streamed text for servers that cannot stream, and is ignored, as are unknown events.
An error is sent as an `error` event and ends the connection, because clients wait for `audio-stop` otherwise.
A client that goes away stops its synthesis. The protocol knows no passwords.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np

from indextts2 import __version__
from indextts2.audio.formats import pcm16
from indextts2.config import InferenceConfig
from indextts2.errors import TextError, UsageError
from indextts2.server.admission import Admission
from indextts2.server.context import begin_request, log_request
from indextts2.server.errors import ApiError, as_api_error
from indextts2.server.listening import listen
from indextts2.server.metrics import CLIENT_GONE, Metrics, Sound
from indextts2.server.wyoming_events import MAX_LINE_BYTES, Event, read_event
from indextts2.types import AudioChunk

if TYPE_CHECKING:
    from indextts2.inference.engine import SpeechRequest
    from indextts2.inference.pipeline import Speaker

log = logging.getLogger(__name__)
T = TypeVar("T")

BYTES_PER_SAMPLE = 2
PROVENANCE = f"synthetic speech; indextts2 {__version__}"
EVENT_SAMPLES = 4096
MAX_TEXT_CHARACTERS = 131_072
MAX_SENTENCE_CHARACTERS = 1000
_NO_ABBREVIATION = r"(?<!\bMr)(?<!\bMs)(?<!\bMrs)(?<!\bDr)(?<!\bSt)(?<!\bProf)(?<!\bvs)(?<!\b[A-Z])"
_SENTENCE = re.compile(rf"[^\n]*?(?:{_NO_ABBREVIATION}[.!?…][\"'”’)\]]*(?=\s)|[。！？][\"'”’）】」』》]*|\n)\s*")


class Job(Protocol):
    """What is needed of a running synthesis."""

    def __iter__(self) -> Iterator[AudioChunk]: ...

    def cancel(self) -> object: ...


class Engine(Protocol):
    """What is needed of a `SpeechEngine`. `submit` may refuse with a typed error."""

    def submit(self, request: SpeechRequest) -> Job: ...


class Voices(Protocol):
    """The voices that clients may choose from."""

    def names(self) -> Sequence[str]: ...

    def speaker(self, name: str | None) -> Speaker:
        """The voice of this name, None: the default one. UsageError when there is none."""


@dataclass
class _Utterance:
    """One request: its sentences as they arrive (None after the last) and the voice that speaks them."""

    voice: str | None
    streaming: bool
    sentences: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)
    unfinished: str = ""
    characters: int = 0

    def add(self, text: str) -> None:
        sentences, self.unfinished = split_sentences(self.unfinished + text)
        for sentence in sentences:
            self.sentences.put_nowait(sentence)

    def finish(self) -> None:
        if self.unfinished.strip():
            self.sentences.put_nowait(self.unfinished)
        self.sentences.put_nowait(None)


class WyomingServer:
    """Listens on `host` and `port` (0 picks one, see `port` after `start`) and speaks with `engine`.

    Each utterance is one of the requests inside `admission`, each of its sentences waits for a turn.
    """

    def __init__(
        self,
        engine: Engine,
        voices: Voices,
        host: str = "127.0.0.1",
        port: int = 10200,
        *,
        languages: Callable[[], Sequence[str]] = lambda: ("en",),
        config: InferenceConfig | None = None,
        mode: Literal["exact", "low-latency"] = "low-latency",
        admission: Admission | None = None,
        metrics: Metrics | None = None,
        max_connections: int = 16,
        idle_timeout_seconds: float = 300.0,
        send_seconds: float = 30.0,
    ) -> None:
        self.engine, self.voices = engine, voices
        self.host, self.port = host, port
        self.languages = languages
        self.config = config or InferenceConfig()
        self.mode = mode
        self.admission = admission or Admission(max_connections, 0, queue_seconds=60.0)
        self.metrics = metrics
        self.max_connections = max_connections
        self.idle_timeout_seconds = idle_timeout_seconds
        self.send_seconds = send_seconds
        # Waiting for the next chunk blocks a thread: one for each connection.
        self.threads = ThreadPoolExecutor(max_connections, thread_name_prefix="wyoming")
        self._socket: socket.socket | None = None
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}

    def listen(self) -> None:
        """Take the port. UsageError when it cannot be had."""
        self._socket = listen(self.host, self.port)
        self.port = self._socket.getsockname()[1]

    async def start(self) -> None:
        """Serve, after `listen` if that was not done, and return."""
        if self._socket is None:
            self.listen()
        self._server = await asyncio.start_server(self._accept, sock=self._socket, limit=MAX_LINE_BYTES)
        log.info("Wyoming protocol on %s:%d", self.host, self.port)

    async def stop(self, timeout_seconds: float = 10.0) -> None:
        """Take no more connections, let speech that is running end within the timeout, close all."""
        if self._server is None:
            return
        self._server.close()
        busy = [task for task, connection in self._connections.items() if connection.working]
        if busy:
            await asyncio.wait(busy, timeout=timeout_seconds)
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._server = self._socket = None

    def info(self) -> Event:
        """The answer to `describe`, for which the model may have to be loaded."""
        return Event("info", {"tts": [_program(self.voices.names(), self.languages())]})

    def voice_name(self, data: Mapping[str, Any]) -> str | None:
        """The voice that an event names; a language alone chooses the default voice. May have to load the model.

        Raises:
            UsageError: the model does not speak the language, or something is no string.
        """
        voice = data.get("voice") or {}
        wanted = voice if isinstance(voice, dict) else {"name": voice}
        for key in ("name", "speaker", "language"):
            value = wanted.get(key)
            if value is not None and not isinstance(value, str):
                raise UsageError(f"the {key} of a voice must be a string, not {type(value).__name__}")
        name, language = wanted.get("name") or wanted.get("speaker"), wanted.get("language")
        if not name and language and re.split("[-_]", language.lower())[0] not in self.languages():
            raise UsageError(f"the language {language!r} is not spoken here; there are: {', '.join(self.languages())}")
        return name

    def request(self, text: str, voice: str | None) -> SpeechRequest:
        """What the engine is asked for."""
        from indextts2.inference.engine import SpeechRequest

        return SpeechRequest(
            text=text, speaker=self.voices.speaker(voice), emotion=None, config=self.config, mode=self.mode
        )

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = _Connection(self, reader, writer)
        task = asyncio.create_task(connection.run(refuse=len(self._connections) >= self.max_connections))
        self._connections[task] = connection
        task.add_done_callback(lambda done: self._connections.pop(done, None))


class _Connection:
    """One client: a task that reads events, and one that speaks the utterances in order."""

    def __init__(self, server: WyomingServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.server, self.reader, self.writer = server, reader, writer
        self.working = False
        self.sound: Sound | None = None
        self.bytes_sent = 0
        self.utterances: asyncio.Queue[_Utterance] = asyncio.Queue()
        self.open: _Utterance | None = None
        self.pending_characters = 0

    async def run(self, refuse: bool) -> None:
        """Serve until the client leaves, something fails, or the task is cancelled."""
        begin_request()
        tasks: list[asyncio.Task[None]] = []
        status = CLIENT_GONE
        try:
            if refuse:
                raise UsageError(f"{self.server.max_connections} connections are open already; try again later")
            tasks = [asyncio.create_task(self._read_all()), asyncio.create_task(self._speak_all())]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except ConnectionError:
            log.debug("a Wyoming client went away")
        except TimeoutError:
            log.warning("a Wyoming client took no audio for %g s and was cut off", self.server.send_seconds)
            self.writer.transport.abort()
        except Exception as error:
            failure = as_api_error(error)
            status = failure.status_code
            await self._fail(failure)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.server.metrics is not None:
                self.server.metrics.ended(self.sound, status)
            self.writer.close()

    async def _fail(self, error: ApiError) -> None:
        told = error.body()["error"]
        with suppress(ConnectionError, TimeoutError):
            await self._send(Event("error", {"text": told["message"], "code": told["code"]}))

    async def _send(self, event: Event) -> None:
        """Send an event. TimeoutError when the client does not take what was sent before."""
        data = event.to_bytes()
        self.bytes_sent += len(data)
        self.writer.write(data)
        await asyncio.wait_for(self.writer.drain(), self.server.send_seconds)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _read_all(self) -> None:
        while (event := await self._next_event()) is not None:
            handler = self._HANDLERS.get(event.type)
            if handler is None:
                log.debug("ignored a Wyoming event of type %r", event.type)
            else:
                await handler(self, event.data)

    async def _next_event(self) -> Event | None:
        """The next event; None when the client left or was silent for too long while nothing was spoken."""
        reading = asyncio.create_task(read_event(self.reader))
        try:
            while not (await asyncio.wait([reading], timeout=self.server.idle_timeout_seconds))[0]:
                if not self.working:
                    return None
            return reading.result()
        finally:
            reading.cancel()

    async def _describe(self, data: Mapping[str, Any]) -> None:
        await self._send(await self._in_thread(self.server.info))

    async def _ping(self, data: Mapping[str, Any]) -> None:
        await self._send(Event("pong", {"text": data["text"]} if "text" in data else {}))

    async def _synthesize(self, data: Mapping[str, Any]) -> None:
        if self.open is not None:
            return
        text = self._take_text(data)
        if not text.strip():
            raise TextError("there is no text to speak; send at least one word")
        utterance = _Utterance(await self._voice_name(data), streaming=False)
        utterance.sentences.put_nowait(text)
        utterance.sentences.put_nowait(None)
        self.utterances.put_nowait(utterance)

    async def _synthesize_start(self, data: Mapping[str, Any]) -> None:
        if self.open is not None:
            raise UsageError("synthesize-start came twice; send synthesize-stop before the next one")
        _check_plain_text(data)
        self.open = _Utterance(await self._voice_name(data), streaming=True)
        self.utterances.put_nowait(self.open)

    async def _synthesize_chunk(self, data: Mapping[str, Any]) -> None:
        self._opened().add(self._take_text(data))

    async def _synthesize_stop(self, data: Mapping[str, Any]) -> None:
        self._opened().finish()
        self.open = None

    _HANDLERS: ClassVar[Mapping[str, Callable[[_Connection, Mapping[str, Any]], Awaitable[None]]]] = {
        "describe": _describe,
        "ping": _ping,
        "synthesize": _synthesize,
        "synthesize-start": _synthesize_start,
        "synthesize-chunk": _synthesize_chunk,
        "synthesize-stop": _synthesize_stop,
    }

    async def _voice_name(self, data: Mapping[str, Any]) -> str | None:
        return await self._in_thread(lambda: self.server.voice_name(data))

    def _opened(self) -> _Utterance:
        if self.open is None:
            raise UsageError("text came without synthesize-start; send that first")
        return self.open

    def _take_text(self, data: Mapping[str, Any]) -> str:
        """The text of an event, counted against what one connection may have waiting."""
        _check_plain_text(data)
        text = data.get("text")
        if not isinstance(text, str):
            raise UsageError(f"text must be a string, not {type(text).__name__}")
        self.pending_characters += len(text)
        if self.pending_characters > MAX_TEXT_CHARACTERS:
            raise TextError(f"more than {MAX_TEXT_CHARACTERS} characters are waiting to be spoken; send them later")
        return text

    # --- speaking -----------------------------------------------------------------------------------------------------

    async def _speak_all(self) -> None:
        while True:
            await self._speak(await self.utterances.get())

    async def _speak(self, utterance: _Utterance) -> None:
        """Speak one request, count it and log it under an id of its own."""
        begin_request()
        self.sound = sound = Sound()
        sent_before = self.bytes_sent
        reason, status = "error", 500
        try:
            await self._send_audio(utterance, sound)
            reason, status = "stop", 200
            self.sound = None
        except (asyncio.CancelledError, ConnectionError, TimeoutError):
            reason, status = "cancelled", CLIENT_GONE
            raise
        except Exception as error:
            failure = as_api_error(error)
            status = failure.status_code
            raise failure from error
        finally:
            if self.server.metrics is not None:
                self.server.metrics.spoken(sound, reason)
            log.info("speech %s", reason, extra={"characters": utterance.characters, **sound.log_fields()})
            client = (self.writer.get_extra_info("peername") or [""])[0]
            log_request("WYOMING", "synthesize", status, self.bytes_sent - sent_before, sound.start, client)

    async def _send_audio(self, utterance: _Utterance, sound: Sound) -> None:
        """Send all sentences of one request as one stream of audio."""
        layout: dict[str, int] = {}
        async with aclosing(self._chunks(utterance, sound)) as chunks:
            async for chunk in chunks:
                if not layout:
                    layout = {"rate": chunk.sample_rate, "width": BYTES_PER_SAMPLE, "channels": 1}
                    await self._send(Event("audio-start", layout | {"timestamp": 0, "provenance": PROVENANCE}))
                samples_sent = sound.samples
                sound.add(len(chunk.samples), chunk.sample_rate)
                for start in range(0, len(chunk.samples), EVENT_SAMPLES):
                    samples = chunk.samples[start : start + EVENT_SAMPLES]
                    timestamp = (samples_sent + start) * 1000 // chunk.sample_rate
                    audio = pcm16(samples).astype("<i2").tobytes()
                    await self._send(Event("audio-chunk", layout | {"timestamp": timestamp}, audio))
        if layout:
            await self._send(Event("audio-stop", {"timestamp": sound.samples * 1000 // sound.sample_rate}))
        if utterance.streaming:
            await self._send(Event("synthesize-stopped"))

    async def _chunks(self, utterance: _Utterance, sound: Sound) -> AsyncGenerator[AudioChunk]:
        """The audio of all sentences, with the usual silence between them, as one of the requests inside."""
        last: AudioChunk | None = None
        sentence = await _next_sentence(utterance, sound)
        with self.server.admission.enter():
            while sentence is not None:
                self.pending_characters -= len(sentence)
                utterance.characters += len(sentence)
                if not utterance.streaming or any(character.isalnum() for character in sentence):
                    if last is not None:
                        yield self._silence(last.sample_rate)
                    async with aclosing(self._sentence(sentence, utterance.voice)) as chunks:
                        async for last in chunks:
                            yield last
                sentence = await _next_sentence(utterance, sound)

    def _silence(self, sample_rate: int) -> AudioChunk:
        samples = np.zeros(int(sample_rate * self.server.config.interval_silence_ms / 1000), np.float32)
        return AudioChunk(0, samples, sample_rate, "", False)

    async def _sentence(self, text: str, voice: str | None) -> AsyncGenerator[AudioChunk]:
        """The chunks of one request to the engine, which is cancelled when this generator is left early."""
        self.working = True
        job: Job | None = None
        try:
            async with self.server.admission.turn():
                job = await self._submit(text, voice)
                chunks = iter(job)
                while (chunk := await self._in_thread(lambda: next(chunks, None))) is not None:
                    yield chunk
                job = None
        finally:
            self.working = False
            if job is not None:
                job.cancel()

    async def _submit(self, text: str, voice: str | None) -> Job:
        server = self.server
        submitted = self._in_thread(lambda: server.engine.submit(server.request(text, voice)))
        try:
            return await asyncio.shield(submitted)
        except asyncio.CancelledError:
            submitted.add_done_callback(_cancel_job)
            raise

    def _in_thread(self, work: Callable[[], T]) -> asyncio.Future[T]:
        return asyncio.get_running_loop().run_in_executor(self.server.threads, copy_context().run, work)


async def _next_sentence(utterance: _Utterance, sound: Sound) -> str | None:
    """The next sentence, None at the end. The time until it comes is the client's: no delay of the speech."""
    asked = monotonic()
    sentence = await utterance.sentences.get()
    sound.start += monotonic() - asked
    return sentence


def _cancel_job(submitted: asyncio.Future[Job]) -> None:
    """Cancel a job whose client went away while it was being submitted."""
    if not submitted.cancelled() and submitted.exception() is None:
        submitted.result().cancel()


def split_sentences(text: str) -> tuple[list[str], str]:
    """Complete sentences of `text`, and what is left after them, which may still go on."""
    sentences = []
    end = 0
    while (match := _SENTENCE.match(text, end)) is not None:
        sentences.append(match.group())
        end = match.end()
    rest = text[end:]
    if len(rest) > MAX_SENTENCE_CHARACTERS:
        # Without a bound, text that comes letter by letter would be searched from its beginning each time.
        cut = rest.rfind(" ") + 1 or len(rest)
        sentences.append(rest[:cut])
        rest = rest[cut:]
    return sentences, rest


def _check_plain_text(data: Mapping[str, Any]) -> None:
    if data.get("text_format", "text") != "text":
        raise UsageError(f"text_format {data['text_format']!r} cannot be read; send plain text")


def _program(voices: Sequence[str], languages: Sequence[str]) -> dict[str, Any]:
    """The service as `info` shows it."""
    origin = {"name": "IndexTTS2", "url": "https://arxiv.org/abs/2506.21619"}
    common = {"attribution": origin, "installed": True, "version": __version__}
    return {
        "name": "indextts2",
        "description": "Zero-shot voice cloning with emotion",
        **common,
        "voices": [{"name": name, "description": name, "languages": list(languages), **common} for name in voices],
        "supports_synthesize_streaming": True,
    }
