"""The OpenAPI document: every answer in the form in which it comes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from indextts2 import __version__
from indextts2.server.schemas import ErrorBody

AUDIO_TYPES = ("audio/mpeg", "audio/opus", "audio/aac", "audio/flac", "audio/wav", "audio/pcm")
_MEANINGS = {
    400: "the request is wrong; the message says how",
    401: "no API key, or a wrong one",
    403: "the request comes from a foreign page",
    404: "there is no such model, voice or address",
    408: "the body did not arrive in time",
    409: "the name is taken, or the voice belongs to another model",
    413: "the body or the audio in it is too large",
    415: "the body is compressed",
    429: "all places are taken; see Retry-After",
    500: "the server failed",
    503: "loading, shutting down, the queue did not move, or too much to be kept; see Retry-After",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning} for status, meaning in _MEANINGS.items()
}
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_EVENTS = {
    "schema": {
        "type": "object",
        "description": "JSON in data: speech.audio.delta with base64 audio, speech.audio.done with usage, or an error",
        "properties": {"data": {"type": "string"}},
        "required": ["data"],
    }
}
_HEADERS = {
    name: {"schema": {"type": "string"}, "description": meaning}
    for name, meaning in {
        "X-Request-Id": "as it stands in the log",
        "X-Sample-Rate": "Hz",
        "X-Seed": "repeats this speech",
        "X-Provenance": "synthetic speech, by which version and model",
        "X-Ignored-Fields": "fields that had no effect",
    }.items()
}
SPEECH_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "audio, or server-sent events with stream_format sse",
        "content": dict.fromkeys(AUDIO_TYPES, _BINARY) | {"text/event-stream": _EVENTS},
        "headers": _HEADERS,
    }
}
BATCH_ANSWER: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the items in their order; each succeeded or failed",
        "headers": {name: _HEADERS[name] for name in ("X-Request-Id", "X-Provenance")},
    }
}


class SpeechApp(FastAPI):
    """An application whose document says what this server really answers."""

    needs_key = False

    def openapi(self) -> dict[str, Any]:
        """The document, made once."""
        if self.openapi_schema is None:
            self.openapi_schema = _document(self, self.needs_key)
        return self.openapi_schema


def _document(app: FastAPI, needs_key: bool) -> dict[str, Any]:
    schema = get_openapi(
        title="IndexTTS2", version=__version__, description="Speech in a cloned voice.", routes=app.routes
    )
    for path, methods in schema["paths"].items():
        for operation in methods.values():
            # The framework's own body for wrong requests, which is never sent.
            operation["responses"].pop("422", None)
            if needs_key and path.startswith("/v1"):
                operation["security"] = [{"key": []}]
    schemas = schema["components"]["schemas"]
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    if needs_key:
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    return schema
