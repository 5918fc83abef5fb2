"""Servers around a fake engine: in process for most tests, on a real port where the network matters."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from starlette.testclient import TestClient

from indextts2.server.app import create_app
from indextts2.server.context import JsonFormatter
from indextts2.server.settings import ServerSettings
from tests.server.fakes import LiveServer, Script, make_voice, serve_in_thread, wait_until

VOICE = "alice"


def wav_bytes(seconds: float = 2.0, rate: int = 16_000, **options: Any) -> bytes:
    t = np.arange(int(seconds * rate)) / rate
    return encode(0.3 * np.sin(2 * np.pi * 180 * t), rate, **options)


def encode(samples: np.ndarray, rate: int, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def data_url(data: bytes, media_type: str = "audio/wav") -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def upload(client: Any, name: str = VOICE, audio: bytes | None = None, **fields: str) -> Any:
    form = {"name": name, "consent": "spoken by Alice, who agreed in writing", **fields}
    files = {"audio_sample": ("sample.wav", wav_bytes() if audio is None else audio, "audio/wav")}
    return client.post("/v1/audio/voices", data=form, files=files)


def add_voice(app: Any, name: str = VOICE) -> None:
    """Put a voice into the registry, past the upload, unless it is there."""
    registry = app.state.server.library.registry
    if registry.get(name) is None:
        registry.add(name, make_voice(), {"consent": "given", "file_size": "9", "mime_type": "audio/wav"})


def say(client: Any, text: str = "one two three", **fields: Any) -> Any:
    body = {"model": "indextts2", "input": text, "voice": VOICE, "response_format": "wav", **fields}
    return client.post("/v1/audio/speech", json=body)


def error_of(response: Any, status: int = 400) -> dict[str, Any]:
    """The error object, after a check that it is whole and has the status."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"] and "Traceback" not in error["message"]
    return error


def collect_log(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Lines of the server's log, formatted where they are written, so that they know their request."""
    lines: list[dict[str, Any]] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(JsonFormatter().format(record)))

    logger = logging.getLogger("indextts2.server")
    monkeypatch.setattr(logger, "handlers", [Collect()])
    monkeypatch.setattr(logger, "level", logging.INFO)
    logger.manager._clear_cache()
    return lines


@pytest.fixture
def packaged_voices(monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The voices that come with the package: none, unless a test puts some here."""
    voices: dict[str, Path] = {}
    monkeypatch.setattr("indextts2.server.voices.named_voices", lambda: voices)
    return voices


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., ServerSettings]:
    def make(**changes: Any) -> ServerSettings:
        return ServerSettings(voices_directory=tmp_path / "voices", **changes)

    return make


@pytest.fixture
def make_client(
    script: Script, make_settings: Callable[..., ServerSettings], packaged_voices: dict[str, Path]
) -> Iterator[Callable[..., TestClient]]:
    """Make a client of a ready server with these settings, which has a voice."""
    clients: list[TestClient] = []

    def make(voice: bool = True, **changes: Any) -> TestClient:
        app = create_app(make_settings(**changes), script.make_engine)
        client = TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=False)
        client.__enter__()
        clients.append(client)
        wait_until(lambda: app.state.server.status == "ready")
        if keys := changes.get("api_keys"):
            client.headers["Authorization"] = f"Bearer {keys[0]}"
        if voice:
            add_voice(app)
        return client

    yield make
    script.gate.set()
    for client in clients:
        client.__exit__(None, None, None)


@pytest.fixture
def client(make_client: Callable[..., TestClient]) -> TestClient:
    return make_client()


@pytest.fixture
def live(
    script: Script, make_settings: Callable[..., ServerSettings], packaged_voices: dict[str, Path]
) -> Iterator[Callable[..., LiveServer]]:
    """Make a server on a real port; it has a voice if the voices directory got one before."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def make(**changes: Any) -> LiveServer:
            server = stack.enter_context(serve_in_thread(create_app(make_settings(**changes), script.make_engine)))
            add_voice(server.app)
            return server

        yield make
        script.gate.set()
