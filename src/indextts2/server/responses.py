"""Audio on its way to a client: encoded while it is made, stopped when the client is gone."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import TypeVar

import numpy as np
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from indextts2.inference.engine import Usage
from indextts2.server.errors import as_api_error
from indextts2.server.speech import Speech
from indextts2.types import AudioChunk

log = logging.getLogger(__name__)
T = TypeVar("T")


class ClientGone(Exception):
    """The client closed the connection; nobody is left to answer."""


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled when the client goes away.

    Raises:
        ClientGone: it did. Whatever `work` raises.
    """
    task, watcher = asyncio.ensure_future(work), asyncio.create_task(_gone(receive))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        task.cancel()
        watcher.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _gone(receive: Receive) -> None:
    """Return when the client closes the connection."""
    while (await receive())["type"] != "http.disconnect":
        pass


class StreamedResponse(Response):
    """Bytes as they come. Whatever ends it, the generator is closed, and with it the work behind it."""

    def __init__(
        self,
        first: bytes,
        rest: AsyncGenerator[bytes],
        media_type: str,
        headers: Mapping[str, str],
        send_seconds: float,
    ) -> None:
        self._first, self._rest = first, rest
        self._send_seconds = send_seconds
        self.background = None
        self.status_code = 200
        self.media_type = media_type
        self.charset = "utf-8"
        self.init_headers(headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._rest):
            try:
                await while_connected(receive, self._send_all(send))
            except ClientGone:
                log.info("the client went away")
            except TimeoutError:
                log.warning("the client took no audio for %g s and was cut off", self._send_seconds)
            except Exception as error:
                # The headers are gone: the connection ends without the last chunk, so that the client sees it broke.
                log.error("audio ended early: %s", as_api_error(error).detail)

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await self._send(send, self._first, True)
        async for data in self._rest:
            await self._send(send, data, True)
        await self._send(send, b"", False)

    async def _send(self, send: Send, data: bytes, more: bool) -> None:
        message = {"type": "http.response.body", "body": data, "more_body": more}
        await asyncio.wait_for(send(message), self._send_seconds)


async def encoded(
    chunks: AsyncGenerator[AudioChunk],
    encode: Callable[[np.ndarray], bytes],
    finish: Callable[[], bytes],
    in_thread: Callable[[Callable[[], bytes]], Awaitable[bytes]],
) -> AsyncGenerator[bytes]:
    """Chunks of audio as the bytes of a file; pieces without bytes are left out."""
    async with aclosing(chunks):
        async for chunk in chunks:
            if data := await in_thread(partial(encode, chunk.samples)):
                yield data
        if data := await in_thread(finish):
            yield data


async def server_sent_events(data: AsyncGenerator[bytes], speech: Speech) -> AsyncGenerator[bytes]:
    """The bytes of a file as OpenAI's events: deltas, then the usage; or an error in place of what is missing."""
    try:
        async with aclosing(data):
            async for part in data:
                yield event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})
    except Exception as error:
        if speech.first_audio is None:
            raise  # nothing was sent: the answer can still say what is wrong by its status
        yield event({"type": "speech.audio.error", **as_api_error(error).body()})
        return
    yield event({"type": "speech.audio.done", "usage": usage_body(speech.usage)})


def event(message: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(message).encode() + b"\n\n"


def usage_body(usage: Usage) -> dict[str, int]:
    """Usage as OpenAI counts it: tokens of text in, codes out."""
    return {
        "input_tokens": usage.text_tokens,
        "output_tokens": usage.codes,
        "total_tokens": usage.text_tokens + usage.codes,
    }
