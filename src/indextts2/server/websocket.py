"""`WS /v1/audio/speech/stream`: text goes in while it is being written, audio comes out sentence by sentence.

    in   session.config {model, voice, …, split_granularity}   first, within 10 s
         input.text {text} …                                   any number, cut anywhere
         input.done                                            the text is complete
         session.close                                         stop at once
    out  audio.start {index, text, sample_rate, media_type, seed}, binary frames, audio.done {index, usage}
         session.done {usage}                                  then the server closes
         error {error}                                         then the server closes

The frames between audio.start and audio.done are one file of the format asked for.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections import deque
from contextlib import aclosing, suppress
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, WebSocket
from pydantic import Field, ValidationError
from starlette.websockets import WebSocketDisconnect, WebSocketState

from indextts2.server.encoders import Encoder, stream_encoder
from indextts2.server.errors import ApiError, as_api_error, from_validation
from indextts2.server.metrics import CLIENT_GONE
from indextts2.server.responses import usage_body
from indextts2.server.routes_speech import check_format
from indextts2.server.schemas import SpeechOptions, Text
from indextts2.server.speech import Speech, SpeechService
from indextts2.server.wyoming import MAX_SENTENCE_CHARACTERS, split_sentences

log = logging.getLogger(__name__)

MAX_CONFIG_BYTES = 4 * 2**20
MAX_MESSAGE_BYTES = 131_072
MAX_PENDING_CHARACTERS = 131_072
MAX_PIECE_CHARACTERS = 4096
CLOSED_WELL, CLOSED_IN_ERROR = 1000, 1008
_CLAUSE = re.compile(r".*?(?:[,;:]+\s+|[，；：、]+\s*)", re.DOTALL)
_MARK = re.compile(r"[.!?…。！？\n,;:，；：、]")
# Between a mark and the place where the text is cut stand at most so many quotes and brackets.
_TAIL_CHARACTERS = 12


class SessionConfig(SpeechOptions):
    """The first message of a session."""

    model: Annotated[Text, Field(max_length=256)] | None = None
    split_granularity: Literal["none", "sentence", "clause"] = "sentence"


def websocket_routes(service: SpeechService) -> APIRouter:
    """The route of incremental text."""
    router = APIRouter()

    @router.websocket("/v1/audio/speech/stream")
    async def stream_speech(websocket: WebSocket) -> None:
        await websocket.accept()
        session = _Session(service, websocket)
        status = CLIENT_GONE
        try:
            await session.run()
        except WebSocketDisconnect:
            log.info("the client went away")
        except Exception as error:
            failure = as_api_error(error)
            status = failure.status_code
            await session.fail(failure)
        finally:
            service.metrics.ended(session.speech, status)

    return router


class TextSplitter:
    """Cuts text that arrives in pieces into parts that are spoken one after the other."""

    def __init__(self, granularity: str) -> None:
        self.granularity = granularity
        self._rest = ""

    def add(self, text: str) -> list[str]:
        """Parts that are complete now."""
        self._rest += text
        if self.granularity == "none" or not self._worth_a_look(len(text)):
            return []
        parts, self._rest = split_sentences(self._rest)
        if self.granularity == "clause":
            parts = [clause for part in parts for clause in _clauses(part)]
            while match := _CLAUSE.match(self._rest):
                parts.append(match.group())
                self._rest = self._rest[match.end() :]
        return [part for part in parts if speakable(part)]

    def _worth_a_look(self, added: int) -> bool:
        """Whether the end holds a mark: else text that comes by letters is not searched again and again."""
        recent = self._rest[-added - _TAIL_CHARACTERS :]
        return len(self._rest) > MAX_SENTENCE_CHARACTERS or _MARK.search(recent) is not None

    def finish(self) -> list[str]:
        """What is left when the text is complete."""
        rest, self._rest = self._rest, ""
        return [rest] if speakable(rest) else []


def speakable(text: str) -> bool:
    """Whether there is a letter or digit in it."""
    return any(character.isalnum() for character in text)


def _clauses(sentence: str) -> list[str]:
    parts = []
    position = 0
    while match := _CLAUSE.match(sentence, position):
        parts.append(match.group())
        position = match.end()
    return [*parts, sentence[position:]]


class _Session:
    """One connection: a task that reads, and one that speaks."""

    def __init__(self, service: SpeechService, websocket: WebSocket) -> None:
        self.service = service
        self.settings = service.settings
        self.websocket = websocket
        self.parts: deque[str] = deque()
        self.changed = asyncio.Event()
        self.text_complete = False
        self.speaking = False
        self.speech: Speech | None = None
        self.pending_characters = 0
        self.usage = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}

    async def run(self) -> None:
        """Serve until the text is spoken, the client leaves, or something fails."""
        config = await self._configure()
        with self.service.admission.enter():
            reading = asyncio.create_task(self._read_all(TextSplitter(config.split_granularity)))
            speaking = asyncio.create_task(self._speak_all(config))
            try:
                # The reader ends only when the client has had enough, or in an error.
                done, _ = await asyncio.wait({reading, speaking}, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
            finally:
                for task in (reading, speaking):
                    task.cancel()
                await asyncio.gather(reading, speaking, return_exceptions=True)
        if speaking in done:
            await self._send({"type": "session.done", "usage": self.usage})
        await self.websocket.close(CLOSED_WELL)

    async def fail(self, error: ApiError) -> None:
        """Tell what is wrong and close."""
        with suppress(WebSocketDisconnect, RuntimeError, OSError):
            if self.websocket.application_state is WebSocketState.CONNECTED:
                await self._send({"type": "error", **error.body()})
                await self.websocket.close(CLOSED_IN_ERROR)

    # --- reading ------------------------------------------------------------------------------------------------------

    async def _configure(self) -> SessionConfig:
        seconds = self.settings.websocket_config_seconds
        message = await self._receive(seconds, MAX_CONFIG_BYTES, f"no session.config came within {seconds:g} s")
        if message.get("type") != "session.config":
            raise ApiError(400, "the first message must be session.config", param="type", code="invalid_value")
        try:
            config = SessionConfig.model_validate({key: value for key, value in message.items() if key != "type"})
        except ValidationError as error:
            raise from_validation(error.errors()) from None
        if config.model is not None:
            self.service.check_model(config.model)
        if config.voice is None and config.ref_audio is None:
            raise ApiError(400, "voice: Field required (or ref_audio)", param="voice", code="missing_field")
        check_format(config.response_format)
        return config

    async def _read_all(self, splitter: TextSplitter) -> None:
        """Take text until `session.close`; WebSocketDisconnect when the client leaves."""
        seconds = self.settings.websocket_idle_seconds
        while True:
            message = await self._receive(seconds, MAX_MESSAGE_BYTES, f"nothing came for {seconds:g} s")
            kind = message.get("type")
            if kind == "session.close":
                return
            if self.text_complete:
                raise ApiError(400, "after input.done only session.close may come", param="type", code="invalid_value")
            if kind == "input.text":
                self._put(splitter.add(self._text(message)))
            elif kind == "input.done":
                self._put(splitter.finish())
                self.text_complete = True
                self.changed.set()
            else:
                raise ApiError(400, "the type must be input.text, input.done or session.close", param="type",
                               code="invalid_value")  # fmt: skip

    def _text(self, message: dict[str, Any]) -> str:
        text = message.get("text")
        if not isinstance(text, str):
            raise ApiError(400, "text must be a string", param="text", code="invalid_value")
        self.pending_characters += len(text)
        if self.pending_characters > MAX_PENDING_CHARACTERS:
            raise ApiError(400, f"more than {MAX_PENDING_CHARACTERS} characters wait to be spoken; send them later",
                           param="text", code="too_much_text")  # fmt: skip
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ApiError(400, "text holds half a surrogate pair", param="text", code="invalid_value") from None
        return text

    def _put(self, parts: list[str]) -> None:
        for part in parts:
            self.parts.extend(part[i : i + MAX_PIECE_CHARACTERS] for i in range(0, len(part), MAX_PIECE_CHARACTERS))
        self.changed.set()

    async def _receive(self, seconds: float, max_bytes: int, silence: str) -> dict[str, Any]:
        """The next message. Silence is an error unless something is being spoken meanwhile."""
        receiving = asyncio.create_task(self.websocket.receive())
        try:
            while not (await asyncio.wait([receiving], timeout=seconds))[0]:
                if not self.speaking:
                    raise ApiError(408, silence, code="idle_timeout")
            message = receiving.result()
        finally:
            receiving.cancel()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        return _parse(message.get("text"), max_bytes)

    # --- speaking -----------------------------------------------------------------------------------------------------

    async def _speak_all(self, config: SessionConfig) -> None:
        index = 0
        while (part := await self._next_part()) is not None:
            self.speaking = True
            await self._speak(index, part, config)
            self.speaking = False
            self.pending_characters = sum(map(len, self.parts))
            index += 1

    async def _next_part(self) -> str | None:
        while not self.parts and not self.text_complete:
            self.changed.clear()
            await self.changed.wait()
        return self.parts.popleft() if self.parts else None

    async def _speak(self, index: int, text: str, config: SessionConfig) -> None:
        self.speech = speech = self.service.begin(text, config)
        encoder: Encoder | None = None
        async with aclosing(self.service.speak(speech, config)) as chunks:
            async for chunk in chunks:
                if encoder is None:
                    encoder = stream_encoder(config.response_format, speech.sample_rate, speech.tags)
                    await self._send(_start(index, text, speech, encoder))
                await self._send_bytes(await self.service.in_thread(partial(encoder.encode, chunk.samples)))
        assert encoder is not None
        await self._send_bytes(await self.service.in_thread(encoder.finish))
        usage = usage_body(speech.usage)
        self.usage = {key: self.usage[key] + usage[key] for key in usage}
        await self._send({"type": "audio.done", "index": index, "usage": usage})
        self.speech = None

    async def _send(self, message: dict[str, Any]) -> None:
        await asyncio.wait_for(self.websocket.send_text(json.dumps(message)), self.settings.send_seconds)

    async def _send_bytes(self, data: bytes) -> None:
        if data:
            await asyncio.wait_for(self.websocket.send_bytes(data), self.settings.send_seconds)


def _start(index: int, text: str, speech: Speech, encoder: Encoder) -> dict[str, Any]:
    return {
        "type": "audio.start",
        "index": index,
        "text": text.strip(),
        "sample_rate": encoder.encoded_sample_rate,
        "media_type": encoder.media_type,
        "seed": speech.seed,
        "provenance": "synthetic speech",
    }


def _parse(text: str | None, max_bytes: int) -> dict[str, Any]:
    if text is None:
        raise ApiError(400, "messages are JSON text, not binary", code="invalid_json")
    if len(text.encode("utf-8", "surrogatepass")) > max_bytes:
        raise ApiError(413, f"the message has more than {max_bytes} bytes, which is the limit", code="body_too_large")
    try:
        message = json.loads(text)
    except (ValueError, RecursionError):
        raise ApiError(400, "the message is not valid JSON", code="invalid_json") from None
    if not isinstance(message, dict):
        raise ApiError(400, "the message must be a JSON object", code="invalid_json")
    return message
