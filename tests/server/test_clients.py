"""The server as real clients see it: OpenAI's package, the websockets package, and a plain socket."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openai
import pytest
import websockets.sync.client as websocket_client

from indextts2.audio.loader import load_audio
from tests.server.conftest import data_url, wav_bytes
from tests.server.fakes import SAMPLE_RATE, WORD_SECONDS, LiveServer, Script, wait_until

KEY = "good-key-1"


@pytest.fixture
def server(live: Callable[..., LiveServer]) -> LiveServer:
    return live(api_keys=(KEY,), max_running=2, max_waiting=1)


@pytest.fixture
def client(server: LiveServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def test_the_example_of_the_documentation(server: LiveServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = (Path(__file__).parents[2] / "docs" / "server.md").read_text(encoding="utf-8")
    code = text.partition("```python\n")[2].partition("```")[0]
    assert len([line for line in code.splitlines() if line]) <= 5
    exec(code.replace("http://127.0.0.1:8000", server.url).replace('"none"', f'"{KEY}"'), {})
    assert load_audio(tmp_path / "hello.mp3").duration == pytest.approx(2 * WORD_SECONDS, abs=0.1)


def test_openai_speech_to_a_file(client: openai.OpenAI, tmp_path: Path) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="indextts2", voice="alice", input="one two three four five six seven", instructions="calmly"
    ) as response:
        response.stream_to_file(tmp_path / "hello.mp3")
    assert load_audio(tmp_path / "hello.mp3").duration == pytest.approx(7 * WORD_SECONDS, abs=0.15)


@pytest.mark.parametrize("name", ["mp3", "opus", "flac", "wav", "pcm"])
def test_openai_formats(client: openai.OpenAI, name: Any) -> None:
    answer = client.audio.speech.create(model="tts-1", voice="alice", input="one two", response_format=name, speed=1.5)
    assert len(answer.content) > 200


def test_openai_streams_while_it_is_spoken(client: openai.OpenAI, script: Script) -> None:
    script.seconds_per_word = 0.1
    start, arrivals, size = time.monotonic(), [], 0
    with client.audio.speech.with_streaming_response.create(
        model="indextts2", voice="alice", input="one two three four five six", response_format="pcm"
    ) as response:
        for data in response.iter_bytes():
            arrivals.append(time.monotonic() - start)
            size += len(data)
    assert size == 6 * 2 * int(WORD_SECONDS * SAMPLE_RATE)
    assert len(arrivals) >= 5
    assert arrivals[0] < arrivals[-1] - 0.3, "the first sound comes long before the last"


def test_openai_extensions(client: openai.OpenAI, script: Script) -> None:
    extra = {"ref_audio": data_url(wav_bytes()), "seed": 11, "emotion": "sad:0.5", "stream": False}
    answer = client.audio.speech.create(model="indextts2", voice="", input="one", response_format="wav", extra_body={
        **extra, "voice": None})  # fmt: skip
    assert answer.response.headers["X-Seed"] == "11"
    assert script.requests[-1].config.seed == 11


def test_openai_events(client: openai.OpenAI) -> None:
    with client.audio.speech.with_streaming_response.create(
        model="indextts2", voice="alice", input="one two", stream_format="sse"
    ) as response:
        lines = [line for line in response.iter_lines() if line]
    assert json.loads(lines[-1].removeprefix("data: "))["type"] == "speech.audio.done"


def test_openai_models(client: openai.OpenAI) -> None:
    assert client.models.list().data[0].id == "indextts2"
    assert client.models.retrieve("tts-1").owned_by == "indextts2"


def test_openai_reads_our_errors(client: openai.OpenAI, server: LiveServer, script: Script) -> None:
    speak: Callable[..., Any] = client.audio.speech.create
    with pytest.raises(openai.BadRequestError) as bad:
        speak(model="indextts2", voice="alice", input="one", speed=9)
    assert (bad.value.param, bad.value.type) == ("speed", "invalid_request_error")
    with pytest.raises(openai.NotFoundError) as unknown:
        speak(model="gpt-4", voice="alice", input="one")
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-key-1").audio.speech.create(model="indextts2", voice="alice", input="one")


def test_openai_tries_again_when_told_to(client: openai.OpenAI, server: LiveServer, script: Script) -> None:
    script.gate.clear()
    admission = server.app.state.server.admission
    admission.inside += 3  # all places taken
    patient = client.with_options(max_retries=2)

    def free() -> None:
        time.sleep(0.3)
        admission.inside -= 3
        script.gate.set()

    threading.Thread(target=free).start()
    start = time.monotonic()
    assert patient.audio.speech.create(model="indextts2", voice="alice", input="one").content
    assert time.monotonic() - start > 0.9, "Retry-After was honoured"


def test_websockets_package(server: LiveServer) -> None:
    url = f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream"
    headers = {"Authorization": f"Bearer {KEY}"}
    audio, kinds = b"", []
    with websocket_client.connect(url, additional_headers=headers) as ws:
        ws.send(json.dumps({"type": "session.config", "voice": "alice", "response_format": "pcm"}))
        for word in ("One ", "two. ", "Thr", "ee."):
            ws.send(json.dumps({"type": "input.text", "text": word}))
        ws.send(json.dumps({"type": "input.done"}))
        for message in ws:
            if isinstance(message, bytes):
                audio += message
            else:
                kinds.append(json.loads(message)["type"])
    assert kinds == ["audio.start", "audio.done", "audio.start", "audio.done", "session.done"]
    assert len(audio) == 3 * 2 * int(WORD_SECONDS * SAMPLE_RATE)


def test_websockets_package_without_key(server: LiveServer) -> None:
    from websockets.exceptions import InvalidStatus

    url = f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream"
    with pytest.raises(InvalidStatus) as refused, websocket_client.connect(url):
        pass
    assert refused.value.response.status_code == 401


def test_websocket_that_vanishes(server: LiveServer, script: Script) -> None:
    script.gate.clear()
    url = f"ws://127.0.0.1:{server.port}/v1/audio/speech/stream"
    with websocket_client.connect(url, additional_headers={"Authorization": f"Bearer {KEY}"}) as ws:
        ws.send(json.dumps({"type": "session.config", "voice": "alice"}))
        ws.send(json.dumps({"type": "input.text", "text": "One two. "}))
        wait_until(lambda: script.active == 1)
        ws.socket.shutdown(socket.SHUT_RDWR)
        assert wait_until(lambda: script.active == 0) < 1


def raw(server: LiveServer, request: bytes) -> bytes:
    """Send bytes, close our side, and read what comes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65_536):
            answer += data
        return answer


def assert_alive(server: LiveServer) -> None:
    assert raw(server, b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").startswith(b"HTTP/1.1 200")


def test_raw_chunked_answer(server: LiveServer) -> None:
    body = json.dumps({"model": "indextts2", "voice": "alice", "input": "one", "response_format": "wav"}).encode()
    head = (f"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {KEY}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")  # fmt: skip
    answer = raw(server, head.encode() + body)
    header, _, content = answer.partition(b"\r\n\r\n")
    assert header.startswith(b"HTTP/1.1 200")
    assert b"transfer-encoding: chunked" in header.lower()
    assert b"RIFF\xff\xff\xff\xffWAVE" in content
    assert answer.endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GARBAGE\r\n\r\n",
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\nConnection: close\r\n\r\n",
        b"POST /v1/audio/speech HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n"
        b"Connection: close\r\n\r\nzz\r\n",
        b"GET /v1/audio/voices/..%2f..%2fetc%2fpasswd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET /%2e%2e/%2e%2e/app.py HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    ],
    ids=lambda request: request[:30].decode(),
)
def test_raw_nonsense(server: LiveServer, request_bytes: bytes) -> None:
    answer = raw(server, request_bytes)
    assert answer.startswith(b"HTTP/1.1 4")
    assert_alive(server)


def test_raw_endless_head(server: LiveServer) -> None:
    """A head over uvicorn's 64 KiB is refused unread, so that the kernel may reset the connection over the answer."""
    try:
        answer = raw(server, b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    except ConnectionError:
        answer = b""
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert_alive(server)
