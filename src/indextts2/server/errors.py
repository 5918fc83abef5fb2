"""Errors as OpenAI's clients read them: `{"error": {"message", "type", "param", "code"}}`, for whatever went wrong."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from indextts2.errors import (
    AudioError,
    Cancelled,
    CheckpointError,
    ConfigError,
    GenerationError,
    IndexTTS2Error,
    MissingExtraError,
    TextError,
    UsageError,
)

log = logging.getLogger(__name__)

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    409: "conflict_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
    499: "cancelled",
}


class ApiError(HTTPException):
    """A refusal with everything that goes into the answer."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """The error object."""
        return error_body(self.status_code, str(self.detail), self.param, self.code)


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """OpenAI's error object; lone surrogates and the like are escaped so that it can be sent."""
    kind = TYPES.get(status, "server_error")
    printable = message.encode("utf-8", "backslashreplace").decode()
    return {"error": {"message": printable, "type": kind, "param": param, "code": code}}


def not_available(message: str, code: str, retry_after_seconds: int) -> ApiError:
    """503 with the time after which it is worth trying again."""
    return ApiError(503, message, code=code, headers={"Retry-After": str(retry_after_seconds)})


def as_api_error(error: BaseException, param: str | None = None) -> ApiError:
    """What a client is told of `error`. Mistakes of the request are explained, failures of the server only named."""
    from indextts2.audio.loader import AudioTooLongError

    if isinstance(error, ApiError):
        return error
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, AudioTooLongError):
        return ApiError(413, str(error), param=param, code="audio_too_large")
    if isinstance(error, (TextError, AudioError, UsageError, ConfigError)):
        name = "input" if isinstance(error, TextError) and param is None else param
        return ApiError(400, str(error), param=name, code=CODES[type(error)])
    if isinstance(error, MissingExtraError):
        return ApiError(400, str(error), param=param, code="not_installed")
    if isinstance(error, CheckpointError):
        log.error("the model refused a request: %s", error)
        return ApiError(500, "the model cannot serve this request; the server's log says why", code="model_error")
    if isinstance(error, Cancelled):
        return not_available("the server stopped this work", "cancelled", 5)
    if isinstance(error, GenerationError) and error.__cause__ is None:  # the model's failure, not that of its code
        log.error("the speech failed: %s", error)
        return ApiError(500, str(error), code="generation_failed")
    log.error("a request failed unexpectedly", exc_info=error)
    return ApiError(500, "the server failed; its log says why", code="internal_error")


CODES: dict[type[BaseException], str] = {
    TextError: "invalid_text",
    AudioError: "invalid_audio",
    UsageError: "invalid_value",
    ConfigError: "invalid_value",
}


def from_validation(errors: Sequence[Any]) -> ApiError:
    """The first thing that is wrong with a body. The values seen are not repeated: they may be secret or huge."""
    first = errors[0]
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    param = ".".join(path) or None
    message = first["msg"].removeprefix("Value error, ")
    where = f"{param}: " if param else ""
    code = "missing_field" if first["type"] == "missing" else "invalid_value"
    return ApiError(400, f"{where}{message}", param=param, code=code)


def error_response(error: ApiError) -> JSONResponse:
    """The error as a response."""
    return JSONResponse(error.body(), error.status_code, error.headers)


def install_handlers(app: FastAPI) -> None:
    """Answer every kind of error in the one form, in place of the framework's own."""

    async def on_error(request: Request, error: Exception) -> JSONResponse:
        found = as_api_error(error)
        if found.status_code == 404 and not isinstance(error, ApiError):
            found = ApiError(404, f"there is nothing at {request.method} {request.url.path}", code="unknown_url")
        return error_response(found)

    async def on_validation(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return error_response(from_validation(error.errors()))

    app.add_exception_handler(HTTPException, on_error)
    app.add_exception_handler(IndexTTS2Error, on_error)
    app.add_exception_handler(RequestValidationError, on_validation)
