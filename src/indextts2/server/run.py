"""Serving the application: listen, and stop gently when told to."""

from __future__ import annotations

import asyncio
import logging
import socket
from types import FrameType

import uvicorn
from fastapi import FastAPI

from indextts2.errors import IndexTTS2Error
from indextts2.server.app import ServerState
from indextts2.server.listening import listen
from indextts2.server.websocket import MAX_CONFIG_BYTES

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1


class GracefulServer(uvicorn.Server):
    """After SIGTERM or SIGINT it goes on answering, unready, until the work in hand is done; then it ends well.

    A second signal ends it at once.
    """

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self.state = state
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Signals come here; they are not raised again afterwards, so that the exit code says success."""
        if self.state.admission.draining:
            self.should_exit = self.force_exit = True
        self.state.admission.draining = True

    async def on_tick(self, counter: int) -> bool:
        """Called every 0.1 s."""
        if self.state.failure is not None and not self.state.host.loaded and self.state.host.facts is None:
            self.should_exit = True
        elif self.state.admission.draining and self._draining is None:
            log.info("shutting down; %d requests are in hand", self.state.admission.inside)
            self._draining = asyncio.create_task(self._drain())
        return await super().on_tick(counter)

    async def _drain(self) -> None:
        try:
            await asyncio.wait_for(self._idle(), self.state.settings.shutdown_seconds)
        except TimeoutError:
            log.warning("%d requests are cut off", self.state.admission.inside)
        self.should_exit = True

    async def _idle(self) -> None:
        await self.state.admission.idle()
        while self.state.host.busy:
            await asyncio.sleep(POLL_SECONDS)


def prepare(app: FastAPI) -> socket.socket:
    """Do what can fail by a mistake of the user before the model is loaded; return the socket of HTTP.

    Raises:
        UsageError: the directory of voices cannot be used, or a port not be had.
    """
    state: ServerState = app.state.server
    state.library.registry.prepare()
    if state.wyoming is not None:
        state.wyoming.listen()
    return listen(state.settings.host, state.settings.port)


def serve(app: FastAPI, listening: socket.socket) -> int:
    """Serve until a signal comes; return the exit code: 0, or that of the error which kept the model from loading."""
    state: ServerState = app.state.server
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        ws_max_size=MAX_CONFIG_BYTES + 1024,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
    )
    GracefulServer(config, state).run(sockets=[listening])
    if state.failure is None:
        return 0
    return state.failure.exit_code if isinstance(state.failure, IndexTTS2Error) else 1
