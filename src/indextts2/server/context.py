"""An id for every request, one line of log for each, and what was refused as a figure."""

from __future__ import annotations

import json
import logging
import re
import secrets
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from time import monotonic

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indextts2.server.errors import ApiError, error_response

log = logging.getLogger("indextts2.server.access")

request_id: ContextVar[str] = ContextVar("request_id", default="-")
QUIET_PATHS = {"/livez", "/readyz", "/health", "/metrics"}
# Names of voices may be names of people.
_VOICE_NAME = re.compile(r"(?<=^/v1/audio/voices/).+", re.DOTALL)
_GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}


def begin_request(identity: str | None = None) -> str:
    """Give what is done and logged from here on an id, which is drawn unless it is given; return it."""
    identity = identity or secrets.token_hex(8)
    request_id.set(identity)
    return identity


class RequestContext:
    """The outermost layer: gives the id, writes the log, and turns what nobody caught into an answer."""

    def __init__(self, app: ASGIApp, on_refused: Callable[[int], None]) -> None:
        self.app = app
        self._on_refused = on_refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        identity = begin_request(given if _GIVEN_ID.fullmatch(given) else None)
        watch = _Watch(send, identity)
        try:
            await self.app(scope, receive, watch.send)
        except Exception:
            log.exception("a request failed unexpectedly")
            if scope["type"] == "http" and watch.status is None:
                error = ApiError(500, "the server failed; its log says why", code="internal_error")
                await error_response(error)(scope, receive, watch.send)
        finally:
            self._finish(scope, watch)

    def _finish(self, scope: Scope, watch: _Watch) -> None:
        if watch.status is not None and watch.status >= 400:
            self._on_refused(watch.status)
        path = _VOICE_NAME.sub("{name}", scope["path"])
        client = scope.get("client") or ("", 0)
        log_request(scope.get("method", "WEBSOCKET"), path, watch.status, watch.bytes_sent, watch.start, client[0])


def log_request(method: str, path: str, status: int | None, bytes_sent: int, start: float, client: str) -> None:
    """The line of the log that every request gets."""
    fields = {
        "method": method,
        "path": path,
        "status": status,
        "bytes_sent": bytes_sent,
        "milliseconds": round(1000 * (monotonic() - start), 1),
        "client": client,
    }
    log.log(logging.DEBUG if path in QUIET_PATHS else logging.INFO, "request", extra=fields)


class _Watch:
    """Sees what is sent."""

    def __init__(self, send: Send, identity: str) -> None:
        self._send, self._identity = send, identity
        self.start = monotonic()
        self.status: int | None = None
        self.bytes_sent = 0

    async def send(self, message: Message) -> None:
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-Id"] = self._identity
            headers["X-Content-Type-Options"] = "nosniff"
        elif message["type"] == "websocket.accept":
            self.status = 101
            message = {**message, "headers": [*message.get("headers", []), (b"x-request-id", self._identity.encode())]}
        self.bytes_sent += len(message.get("body") or message.get("bytes") or b"")
        await self._send(message)


class JsonFormatter(logging.Formatter):
    """One JSON object a line. Texts, voices and keys are never logged, so they cannot be in it."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": request_id.get(),
        }
        entry |= {key: value for key, value in record.__dict__.items() if key not in _STANDARD}
        if record.exc_info and record.exc_info[0] is not None:
            entry["traceback"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps(entry, ensure_ascii=False, default=str)


def configure_logging(verbose: bool) -> None:
    """Write the log of the package, and warnings of all others, to stderr as JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("indextts2").setLevel(logging.DEBUG if verbose else logging.INFO)
