"""A real server with an engine that hums, and a real browser."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
import uvicorn

from indextts2.server.app import create_app
from indextts2.server.model_host import Engine
from indextts2.server.settings import ServerSettings
from tests.page.chromium import EXECUTABLE, Browser, Page
from tests.page.tone_engine import HumEngine, hum

KEY = "a-key-for-tests"


@dataclass
class Served:
    """A running server."""

    url: str
    engine: HumEngine
    server: uvicorn.Server
    thread: threading.Thread

    def stop(self) -> None:
        self.engine.gate.set()
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(15)


def voice_file(seconds: float = 3.0, container: str = "WAV") -> bytes:
    """A recording that can serve as a voice."""
    file = io.BytesIO()
    sound = np.resize(hum("this is how I sound", 1), int(seconds * 22050))
    soundfile.write(file, sound, 22050, format=container)
    return file.getvalue()


def serve(folder: Path, make_engine: Callable[[], Engine] | None = None, **settings: object) -> Served:
    """Start a server on a free port; its voices lie in `folder`. It hums unless it is given another engine."""
    engine = HumEngine()
    listener = socket.create_server(("127.0.0.1", 0))
    app = create_app(ServerSettings(voices_directory=folder, **settings), make_engine or (lambda: engine))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    deadline = time.monotonic() + 30
    while httpx.get(f"{url}/readyz").status_code != 200:
        assert time.monotonic() < deadline, "the server did not get ready"
        time.sleep(0.05)
    return Served(f"{url}/", engine, server, thread)


def add_voice(url: str, name: str, headers: dict[str, str] | None = None) -> None:
    """Upload a voice."""
    answer = httpx.post(
        f"{url}v1/audio/voices",
        files={"audio_sample": ("voice.wav", voice_file(), "audio/wav")},
        data={"name": name, "consent": "a test"},
        headers=headers,
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if EXECUTABLE is None:
        pytest.skip("Chromium is not installed; on Debian: apt-get install chromium")
    browser = Browser(tmp_path_factory.mktemp("chromium"))
    yield browser
    browser.close()


@pytest.fixture(scope="session")
def shared_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = serve(tmp_path_factory.mktemp("voices"))
    for name in ("alice", "bob"):
        add_voice(served.url, name)
    yield served
    served.stop()


@pytest.fixture
def served(shared_server: Served) -> Served:
    """A server with the voices alice and bob, and nothing asked of it yet."""
    shared_server.engine.jobs.clear()
    shared_server.engine.gate.clear()
    return shared_server


@pytest.fixture
def page(browser: Browser, served: Served) -> Iterator[Page]:
    """The page of the server. The test fails if anything went wrong inside the page that it did not expect."""
    with browser.page(served.url) as page:
        page.run("localStorage.clear()")
        yield page
        page.run("1")
        assert page.problems == []


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[Callable[..., Served]]:
    """Start further servers, which are stopped after the test."""
    started: list[Served] = []

    def start(**settings: object) -> Served:
        started.append(serve(tmp_path / f"voices{len(started)}", **settings))
        return started[-1]

    yield start
    for served in started:
        served.stop()
