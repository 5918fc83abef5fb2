"""What every request passes before it reaches a route: keys, origins, and limits on what is read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from time import monotonic
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indextts2.server.errors import ApiError, error_response, not_available
from indextts2.server.settings import ServerSettings, is_loopback

API_PREFIX = "/v1"
UPLOAD_PATH = "/v1/audio/voices"
# What a form needs beside its file.
FORM_BYTES = 65_536
CHECKED_METHODS = {"POST", "PUT", "PATCH", "DELETE"}
POLICY_VIOLATION = 1008
RETRY_SECONDS = 5


class Guard:
    """Refuses requests that have no key, come from foreign pages, or are too large. Websockets likewise."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self.settings = settings
        self._digests = [_digest(key) for key in settings.api_keys]
        self.bytes_held = 0
        places = settings.max_running + settings.max_waiting
        self.max_bytes_held = places * max(settings.max_json_bytes, settings.max_upload_bytes + FORM_BYTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            self._check(scope, Headers(scope=scope))
        except ApiError as error:
            await _refuse(error, scope, receive, send)
            return
        incoming = _Messages(self, receive) if scope["type"] == "websocket" else _Body(self, receive, scope)
        try:
            await self.app(scope, incoming.receive, send)
        finally:
            self.bytes_held -= incoming.held

    def hold(self, size: int) -> None:
        """Count bytes that came; ApiError when there are too many with those of others."""
        self.bytes_held += size
        if self.bytes_held > self.max_bytes_held:
            raise not_available("the bodies of other requests fill the memory that is meant for them; try again later",
                                "bodies_full", RETRY_SECONDS)  # fmt: skip

    def max_bytes(self, scope: Scope) -> int:
        """How long the body of a request may be."""
        if scope["path"].rstrip("/") == UPLOAD_PATH:
            return self.settings.max_upload_bytes + FORM_BYTES
        return self.settings.max_json_bytes

    def _check(self, scope: Scope, headers: Headers) -> None:
        host = headers.get("host", "")
        if self.settings.checks_host and not self._known_host(host):
            raise ApiError(403, "this server is open on this machine only; for another name see --allowed-host",
                           code="unknown_host")  # fmt: skip
        if not scope["path"].startswith(API_PREFIX):
            return
        self._check_origin(scope, headers.get("origin"), host)
        if self._digests:
            self._check_key(headers.get("authorization", ""))
        if scope["type"] == "http":
            self._check_body(scope, headers)

    def _known_host(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        return is_loopback(name) or name in self.settings.allowed_hosts

    def _check_origin(self, scope: Scope, origin: str | None, host: str) -> None:
        """A page may call the server that it came from; others only if they are allowed to.

        Browsers send some requests of foreign pages without asking, and websockets always.
        """
        if origin is None or origin in self.settings.allowed_origins:
            return
        if scope["type"] == "http" and scope["method"] not in CHECKED_METHODS:
            return
        if origin.partition("://")[2] != host:
            raise ApiError(403, "pages of other origins may not call this server; see --allowed-origin",
                           code="foreign_origin")  # fmt: skip

    def _check_key(self, authorization: str) -> None:
        """Compare with every key, in a time that says nothing of how much of it was right."""
        scheme, _, key = authorization.partition(" ")
        given = _digest(key.strip())
        good = [hmac.compare_digest(given, digest) for digest in self._digests]
        if scheme.lower() != "bearer" or not any(good):
            seen = "a wrong API key" if key else "no API key"
            raise ApiError(401, f"{seen} came with the request; send Authorization: Bearer KEY",
                           code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})  # fmt: skip

    def _check_body(self, scope: Scope, headers: Headers) -> None:
        encoding = headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            raise ApiError(415, "compressed bodies are not read; send it as it is", code="unsupported_encoding",
                           headers={"Accept-Encoding": "identity"})  # fmt: skip
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20 and int(length) > self.max_bytes(scope):
            raise _too_large(self.max_bytes(scope))


class _Body:
    """The body of one request: its bytes and the seconds until it is complete are bounded, and the bytes of all."""

    def __init__(self, guard: Guard, receive: Receive, scope: Scope) -> None:
        self._guard, self._receive, self._limit = guard, receive, guard.max_bytes(scope)
        self._deadline = monotonic() + guard.settings.body_seconds
        self._complete = False
        self.held = 0

    async def receive(self) -> Message:
        """The next message. ApiError when the body is slow or too large, or too much of others is in memory."""
        if self._complete:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(0.0, self._deadline - monotonic()))
        except TimeoutError:
            raise ApiError(408, f"the body did not arrive within {self._guard.settings.body_seconds:g} s",
                           code="body_timeout") from None  # fmt: skip
        size = len(message.get("body", b""))
        self.held += size
        if self.held > self._limit:
            self._guard.bytes_held += size
            raise _too_large(self._limit)
        self._guard.hold(size)
        self._complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message


class _Messages:
    """What comes over one websocket, counted among the bytes of all bodies.

    Those of the first message, which may hold a recording, count while the connection is open, those of a later one
    until the next is asked for.
    """

    def __init__(self, guard: Guard, receive: Receive) -> None:
        self._guard, self._receive = guard, receive
        self._first = 0
        self.held = 0

    async def receive(self) -> Message:
        """The next message. ApiError when too much of others is in memory."""
        self._guard.bytes_held -= self.held - self._first
        self.held = self._first
        message = await self._receive()
        size = len(message.get("bytes") or b"") + len((message.get("text") or "").encode("utf-8", "surrogatepass"))
        if self._first:
            self.held += size
        else:
            self.held = self._first = size
        if size:
            self._guard.hold(size)
        return message


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body has more than {limit} bytes, which is the limit", code="body_too_large")


async def _refuse(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "http":
        await error_response(error)(scope, receive, send)
        return
    extensions = scope.get("extensions") or {}
    if "websocket.http.response" in extensions:
        await error_response(error)(scope, receive, send)
    else:
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": str(error.detail)[:100]})
