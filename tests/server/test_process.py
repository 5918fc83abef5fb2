"""The command `serve` as a process: it starts, stops gently, is killed, and speaks with a real model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

from indextts2.audio.writer import encode_audio
from indextts2.inference.engine import SpeechEngine
from indextts2.inference.pipeline import IndexTTS2
from indextts2.server.app import create_app
from indextts2.server.settings import ServerSettings
from indextts2.server.warm_up import warm_up
from tests.server.conftest import upload
from tests.server.fakes import serve_in_thread, wait_until
from tests.tiny import recording, write_tiny_model

ROOT = Path(__file__).parents[2]
BODY = {"model": "indextts2", "voice": "alice", "input": "one two three four five", "response_format": "pcm"}
START_SECONDS = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class Process:
    """A server process and a client for it."""

    def __init__(self, voices: Path, *arguments: str, module: str = "tests.server.process", **environment: str) -> None:
        self.port = free_port()
        command = [sys.executable, "-m", module, "--port", str(self.port), "--voices-dir", str(voices), *arguments]
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=os.environ | environment, stderr=subprocess.PIPE, text=True
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=30)
        self.lines: list[str] = []
        threading.Thread(target=lambda: self.lines.extend(self.process.stderr or ()), daemon=True).start()

    def status(self, path: str) -> int:
        try:
            return self.client.get(path).status_code
        except httpx.TransportError:
            return 0

    def wait_ready(self) -> None:
        wait_until(lambda: self.process.poll() is not None or self.status("/readyz") == 200, START_SECONDS)
        assert self.process.poll() is None, self.lines


@contextmanager
def server(voices: Path, *arguments: str, **environment: str) -> Iterator[Process]:
    started = Process(voices, *arguments, **environment)
    try:
        started.wait_ready()
        yield started
    finally:
        started.client.close()
        if started.process.poll() is None:
            started.process.kill()
        started.process.wait(10)


def test_3_work_in_flight_is_finished(tmp_path: Path) -> None:
    with server(tmp_path, SECONDS_PER_WORD="0.25") as started:
        assert upload(started.client).status_code == 200
        answers: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: answers.append(started.client.post("/v1/audio/speech", json=BODY)))
        thread.start()
        wait_until(lambda: started.client.get("/health").json()["running"] == 1)
        started.process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: started.status("/readyz") == 503) < 0.5
        assert started.status("/livez") == 200
        refused = started.client.post("/v1/audio/speech", json=BODY)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
        thread.join(20)
        assert answers[0].status_code == 200
        assert len(answers[0].content) == 5 * 2 * 1102
        assert started.process.wait(10) == 0
    entries = [json.loads(line) for line in started.lines if line.startswith("{")]
    assert any(entry["message"].startswith("shutting down") for entry in entries)


def test_3_work_that_takes_too_long_is_cut_off(tmp_path: Path) -> None:
    with server(tmp_path, "--shutdown-seconds", "0.5", SECONDS_PER_WORD="20") as started:
        assert upload(started.client).status_code == 200
        body = json.dumps(BODY).encode()
        head = "POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: "
        with socket.create_connection(("127.0.0.1", started.port)) as connection:
            connection.sendall(f"{head}{len(body)}\r\n\r\n".encode() + body)
            wait_until(lambda: started.client.get("/health").json()["running"] == 1)
            started.process.send_signal(signal.SIGTERM)
            assert started.process.wait(10) == 0


def test_killed_and_started_again(tmp_path: Path) -> None:
    with server(tmp_path, SECONDS_PER_WORD="5") as started:
        assert upload(started.client).status_code == 200
        started.process.kill()
    with server(tmp_path) as again:
        assert "alice" in again.client.get("/v1/audio/voices").json()["voices"]
        assert again.client.post("/v1/audio/speech", json=BODY).status_code == 200


def test_a_public_address_without_key_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "indextts2.cli.main", "serve", "--host", "0.0.0.0", "--voices-dir", str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if name != "INDEXTTS2_API_KEY"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == 2
    assert "no API key is set" in done.stderr
    assert "Traceback" not in done.stderr


def test_mistakes_are_told_in_one_line_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, message in (
            (["--port", "0", "--voices-dir", str(tmp_path / "file")], "the voices directory"),
            (["--port", port, "--voices-dir", str(tmp_path)], f"cannot listen on 127.0.0.1 port {port}"),
            (["--port", "0", "--voices-dir", str(tmp_path), "--wyoming-port", port], f"127.0.0.1 port {port}"),
            (["--port", "0", "--voices-dir", str(tmp_path), "--host", "nowhere.invalid", "--api-key", "good-key-1"],
             "cannot listen on nowhere.invalid port 0"),
        ):  # fmt: skip
            command = [sys.executable, "-m", "indextts2.cli.main", "serve", "--model", "nowhere", *arguments]
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 2, done.stderr
            assert message in done.stderr
            assert len(done.stderr.splitlines()) == 1


def test_a_model_that_is_not_there(tmp_path: Path) -> None:
    arguments = ["--model", str(tmp_path / "nowhere"), "--port", str(free_port()), "--voices-dir", str(tmp_path / "v")]
    command = [sys.executable, "-m", "indextts2.cli.main", "serve", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 6
    assert "the model cannot be loaded" in done.stderr


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tts(tmp_path_factory: pytest.TempPathFactory) -> IndexTTS2:
    return IndexTTS2.from_pretrained(write_tiny_model(tmp_path_factory.mktemp("tiny") / "model"), device="cpu")


def test_warming_up_leaves_nothing_behind(tts: IndexTTS2) -> None:
    warm_up(tts)
    assert len(tts._voices) == 0


def test_7_a_real_model_speaks_the_same_alone_and_among_others(
    tts: IndexTTS2, make_settings: Callable[..., ServerSettings]
) -> None:
    sample = recording(1.5)
    audio = encode_audio(sample.samples, sample.sample_rate, "wav", synthetic=False)
    app = create_app(make_settings(), lambda: SpeechEngine(tts, max_running=4))
    texts = ["Hello world.", "A second text, which is longer.", "And the third one.", "The last text of four."]
    extra: dict[str, Any] = {"max_new_tokens": 24}
    with serve_in_thread(app) as live:
        with httpx.Client(base_url=live.url, timeout=60) as http:
            assert upload(http, audio=audio).status_code == 200
        client = openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0, timeout=60)

        def speak(index: int) -> np.ndarray:
            answer = client.audio.speech.create(
                model="indextts2", voice="alice", input=texts[index], response_format="pcm",
                extra_body={**extra, "seed": index},
            )  # fmt: skip
            return np.frombuffer(answer.content, "<i2")

        alone = [speak(index) for index in range(4)]
        with ThreadPoolExecutor(4) as pool:
            together = list(pool.map(speak, range(4)))
    for one, other in zip(alone, together, strict=True):
        assert one.shape == other.shape
        assert np.abs(one.astype(int) - other).max() <= 1, "equal but for rounding"
        assert np.abs(one).max() > 0
    assert not np.array_equal(alone[0][:1000], alone[1][:1000])
