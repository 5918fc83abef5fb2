"""The application: everything put together. Start reading here; `run` serves it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import get_args

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware

from indextts2 import __version__
from indextts2.config import InferenceConfig
from indextts2.errors import IndexTTS2Error
from indextts2.server.admission import Admission
from indextts2.server.context import RequestContext
from indextts2.server.encoders import has_encoder
from indextts2.server.errors import install_handlers
from indextts2.server.guard import Guard
from indextts2.server.metrics import Metrics
from indextts2.server.model_host import EngineFactory, ModelHost
from indextts2.server.openapi import SpeechApp
from indextts2.server.routes_speech import speech_routes
from indextts2.server.routes_voices import model_routes, voice_routes
from indextts2.server.schemas import AudioFormat, Health
from indextts2.server.settings import ServerSettings
from indextts2.server.speech import SpeechService
from indextts2.server.voices import VoiceLibrary, VoiceRegistry
from indextts2.server.websocket import websocket_routes
from indextts2.server.wyoming import WyomingServer

log = logging.getLogger(__name__)

PAGE = Path(__file__).parent / "page"
PAGE_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-cache",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
}
IDLE_CHECK_SECONDS = 1.0


class ServerState:
    """What the parts of one server share. It is `app.state.server`."""

    def __init__(self, settings: ServerSettings, engine_factory: EngineFactory) -> None:
        self.settings = settings
        self.start = monotonic()
        self.host = ModelHost(engine_factory)
        self.admission = Admission(settings.max_running, settings.max_waiting, settings.queue_seconds)
        self.metrics = Metrics(self.admission, self.host)
        registry = VoiceRegistry(settings.voices_directory, settings.max_voices)
        self.library = VoiceLibrary(registry, settings.voice_aliases)
        self.service = SpeechService(settings, self.host, self.library, self.admission, self.metrics)
        self.wyoming: WyomingServer | None = None
        if settings.wyoming_port is not None:
            self.wyoming = WyomingServer(
                self.host, self.library, settings.wyoming_address, settings.wyoming_port,
                languages=self.host.languages, config=InferenceConfig(preset=settings.preset),
                admission=self.admission, metrics=self.metrics, send_seconds=settings.send_seconds,
            )  # fmt: skip
        self.failure: BaseException | None = None

    @property
    def status(self) -> str:
        """`ready` only when a request would be served."""
        if self.admission.draining:
            return "draining"
        if self.failure is not None:
            return "failed"
        return "ready" if self.host.facts is not None else "loading"

    def health(self) -> Health:
        """Everything that /health tells."""
        facts = self.host.facts
        return Health.model_validate(
            {
                "status": self.status,
                "version": __version__,
                "model": self.settings.model_name,
                "model_loaded": self.host.loaded,
                "fingerprint": facts and facts.fingerprint,
                "sample_rate": facts and facts.sample_rate,
                "reads_emotion_from_words": facts and facts.reads_emotion_from_words,
                "response_formats": [name for name in get_args(AudioFormat) if has_encoder(name)],
                "running": self.admission.running,
                "waiting": self.admission.waiting,
                "uptime_seconds": round(monotonic() - self.start, 1),
            }
        )

    async def load(self) -> None:
        """Load the model before the first request asks for it; a failure is kept in `failure`."""
        try:
            await self.service.facts()
        except Exception as error:
            self.failure = error
            if isinstance(error, IndexTTS2Error):
                log.error("the model cannot be loaded: %s", error)
            else:
                log.exception("the model cannot be loaded")

    async def unload_when_idle(self, seconds: float) -> None:
        """Let go of the model whenever nobody has used it for so long."""
        while True:
            await asyncio.sleep(min(IDLE_CHECK_SECONDS, seconds / 2))
            if not self.admission.inside and monotonic() - self.admission.last_activity >= seconds:
                await asyncio.to_thread(self.host.unload_if_idle, seconds)


def create_app(settings: ServerSettings, engine_factory: EngineFactory) -> FastAPI:
    """The server as an ASGI application.

    Args:
        engine_factory: makes the SpeechEngine; called in a thread when the server starts, and again after an idle
            unload or a death of the worker.
    """
    state = ServerState(settings, engine_factory)
    # Its interactive pages load scripts from elsewhere; the document itself is at /openapi.json.
    app = SpeechApp(title="IndexTTS2", version=__version__, docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.needs_key = bool(settings.api_keys)
    app.state.server = state
    app.include_router(speech_routes(state.service))
    app.include_router(websocket_routes(state.service))
    app.include_router(voice_routes(state.service))
    app.include_router(model_routes(state.service))
    _add_health(app, state)
    install_handlers(app)
    if settings.serve_page:
        _add_page(app)
    # The last one added is the outermost.
    app.add_middleware(Guard, settings=settings)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-Request-Id"],
            expose_headers=["X-Request-Id", "X-Sample-Rate", "X-Seed", "X-Provenance", "X-Ignored-Fields"],
        )
    app.add_middleware(RequestContext, on_refused=state.metrics.refused)
    return app


def _add_page(app: FastAPI) -> None:
    """One route for each file of the web page, so that nothing else can be reached and wrong methods are told so."""
    for path in sorted(PAGE.rglob("*")):
        if path.is_file():
            name = path.relative_to(PAGE).as_posix()
            address = "/" if name == "index.html" else f"/{name}"
            app.add_route(address, _sender(path), ["GET", "HEAD"], include_in_schema=False)


def _sender(path: Path) -> Callable[[Request], Awaitable[Response]]:
    async def send(_: Request) -> Response:
        return FileResponse(path, headers=PAGE_HEADERS)

    return send


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    state: ServerState = app.state.server
    settings = state.settings
    state.library.registry.prepare()
    tasks = [asyncio.create_task(state.load())]
    if settings.idle_unload_seconds is not None:
        tasks.append(asyncio.create_task(state.unload_when_idle(settings.idle_unload_seconds)))
    if state.wyoming is not None:
        await state.wyoming.start()
    try:
        yield
    finally:
        state.admission.draining = True
        for task in tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        if state.wyoming is not None:
            await state.wyoming.stop()
        await asyncio.to_thread(state.host.close, settings.shutdown_seconds)
        state.service.close()


def _add_health(app: FastAPI, state: ServerState) -> None:
    """Routes for those who watch the server; they answer whatever it is busy with."""

    @app.get("/livez", response_class=PlainTextResponse, tags=["health"])
    async def livez() -> str:
        """The process answers."""
        return "ok"

    @app.get("/readyz", tags=["health"], responses={503: {"description": "loading, failed or shutting down"}})
    async def readyz() -> Response:
        """Whether requests are served."""
        return JSONResponse({"status": state.status}, 200 if state.status == "ready" else 503)

    @app.get("/health", tags=["health"])
    async def health() -> Health:
        """The state of the server."""
        return state.health()

    @app.get("/metrics", response_class=PlainTextResponse, tags=["health"])
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(state.metrics.text(), media_type=CONTENT_TYPE_LATEST)
