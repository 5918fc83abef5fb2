"""`POST /v1/audio/speech` and `/v1/audio/speech/batch`."""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from pydantic import ValidationError
from starlette.responses import Response

from indextts2 import __version__
from indextts2.errors import MissingExtraError
from indextts2.server.encoders import Encoder, check_encoder, encode_file, stream_encoder
from indextts2.server.errors import ApiError, as_api_error, from_validation
from indextts2.server.metrics import CLIENT_GONE
from indextts2.server.openapi import BATCH_ANSWER, ERRORS, SPEECH_ANSWER
from indextts2.server.responses import (
    ClientGone,
    StreamedResponse,
    encoded,
    server_sent_events,
    usage_body,
    while_connected,
)
from indextts2.server.schemas import BatchAnswer, BatchBody, BatchItem, SpeechBody, SpeechOptions, item_body
from indextts2.server.speech import Speech, SpeechService
from indextts2.types import AudioChunk


def speech_routes(service: SpeechService) -> APIRouter:
    """The routes that speak."""
    router = APIRouter()

    @router.post("/v1/audio/speech", response_class=Response, responses=SPEECH_ANSWER | ERRORS, tags=["speech"])
    async def create_speech(body: SpeechBody, request: Request) -> Response:
        """Speak a text: audio while it is made, or server-sent events."""
        service.check_model(body.model)
        check_format(body.response_format)
        speech = service.begin(body.input, body)
        try:
            if not body.streams and body.stream_format == "audio":
                return await while_connected(request.receive, _whole(service, speech, body))
            return await _streamed(service, speech, body, request)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)

    @router.post(
        "/v1/audio/speech/batch", response_model_exclude_none=True, responses=BATCH_ANSWER | ERRORS, tags=["speech"]
    )
    async def create_batch(body: BatchBody, request: Request, response: Response) -> BatchAnswer:
        """Speak up to 32 texts; each succeeds or fails on its own."""
        service.check_model(body.model)
        with service.admission.enter():
            try:
                results = await while_connected(request.receive, _batch(service, body))
            except ClientGone:
                raise ApiError(CLIENT_GONE, "the client went away") from None
        good = sum(result["status"] == "success" for result in results)
        model = (await service.facts()).fingerprint[:16]
        response.headers["X-Provenance"] = f"synthetic speech; indextts2 {__version__}; model {model}"
        answer = {"id": f"batch-{secrets.token_hex(12)}", "results": results, "total": len(results),
                  "succeeded": good, "failed": len(results) - good}  # fmt: skip
        return BatchAnswer.model_validate(answer)

    return router


def check_format(name: str) -> None:
    """ApiError for a format that cannot be written here."""
    try:
        check_encoder(name)
    except MissingExtraError as error:
        raise ApiError(400, f"{error}; or choose mp3, opus, flac, wav or pcm", param="response_format",
                       code="unsupported_format") from None  # fmt: skip


def headers_of(service: SpeechService, speech: Speech, options: SpeechOptions, sample_rate: int) -> dict[str, str]:
    """What a client may want to know of the audio, and that it is synthetic."""
    facts = service.host.facts
    ignored = options.ignored_fields(facts is not None and facts.reads_emotion_from_words)
    headers = {
        "X-Sample-Rate": str(sample_rate),
        "X-Seed": str(speech.seed),
        "X-Provenance": speech.provenance,
        "Cache-Control": "no-store",
    }
    return headers | ({"X-Ignored-Fields": ", ".join(ignored)} if ignored else {})


async def _admitted(service: SpeechService, speech: Speech, options: SpeechOptions) -> AsyncGenerator[AudioChunk]:
    """The audio of a request that takes one place."""
    with service.admission.enter():
        async with aclosing(service.speak(speech, options)) as chunks:
            async for chunk in chunks:
                yield chunk


async def _streamed(service: SpeechService, speech: Speech, body: SpeechBody, request: Request) -> Response:
    """Audio or events while they are made. The first bytes are waited for, so that errors have their status."""
    encoder: Encoder | None = None

    def encode(samples: np.ndarray) -> bytes:
        nonlocal encoder
        if encoder is None:
            encoder = stream_encoder(body.response_format, speech.sample_rate, speech.tags)
        return encoder.encode(samples)

    def finish() -> bytes:
        return b"" if encoder is None else encoder.finish()

    data = encoded(_admitted(service, speech, body), encode, finish, service.in_thread)
    sse = body.stream_format == "sse"
    if sse:
        data = server_sent_events(data, speech)
    try:
        first = await while_connected(request.receive, anext(data, b""))
    except BaseException:
        await data.aclose()
        raise
    assert encoder is not None
    headers = headers_of(service, speech, body, encoder.encoded_sample_rate)
    media_type = "text/event-stream" if sse else encoder.media_type
    return StreamedResponse(first, data, media_type, headers, service.settings.send_seconds)


async def _whole(service: SpeechService, speech: Speech, body: SpeechBody) -> Response:
    """One complete file."""
    with service.admission.enter():
        data, media_type, sample_rate = await _file(service, speech, body)
    return Response(data, media_type=media_type, headers=headers_of(service, speech, body, sample_rate))


async def _file(service: SpeechService, speech: Speech, options: SpeechOptions) -> tuple[bytes, str, int]:
    """All the audio of a request as one file, with its media type and sample rate."""
    async with aclosing(service.speak(speech, options)) as chunks:
        parts = [chunk.samples async for chunk in chunks]
    samples, name = np.concatenate(parts), options.response_format
    probe = stream_encoder(name, speech.sample_rate, speech.tags)
    data = await service.in_thread(lambda: encode_file(name, samples, speech.sample_rate, speech.tags))
    return data, probe.media_type, probe.encoded_sample_rate


# --- batch ------------------------------------------------------------------------------------------------------------


async def _batch(service: SpeechService, body: BatchBody) -> list[dict[str, Any]]:
    """All items; a batch takes at most half of the turns, so that single requests get through."""
    at_once = asyncio.Semaphore(max(1, service.admission.max_running // 2))

    async def one(index: int, item: BatchItem) -> dict[str, Any]:
        async with at_once:
            speech = None
            try:
                options = _item_options(service, body, item)
                speech = service.begin(item.input, options)
                return {"index": index, "status": "success", **await _item(service, speech, options)}
            except Exception as error:
                failure = as_api_error(error)
                service.metrics.ended(speech, failure.status_code)
                return {"index": index, "status": "error", **failure.body()}

    return list(await asyncio.gather(*(one(index, item) for index, item in enumerate(body.items))))


def _item_options(service: SpeechService, body: BatchBody, item: BatchItem) -> SpeechBody:
    """One item as a request of its own, with what the batch says for all."""
    try:
        merged = item_body(body, item)
    except ValidationError as error:
        raise from_validation(error.errors()) from None
    service.check_model(merged.model)
    check_format(merged.response_format)
    return merged


async def _item(service: SpeechService, speech: Speech, options: SpeechBody) -> dict[str, Any]:
    """The answer of one item."""
    data, media_type, _ = await _file(service, speech, options)
    return {
        "audio_data": base64.b64encode(data).decode(),
        "media_type": media_type,
        "seed": speech.seed,
        "provenance": speech.provenance,
        "usage": usage_body(speech.usage),
    }
