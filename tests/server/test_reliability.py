"""What must hold under load and when things break (the eight checks of the contract)."""

from __future__ import annotations

import json
import logging
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from indextts2.errors import CheckpointError, GenerationError
from indextts2.inference.engine import SpeechEngine
from indextts2.inference.pipeline import IndexTTS2
from indextts2.server.app import create_app
from indextts2.server.context import JsonFormatter
from tests.server.conftest import collect_log, data_url, error_of, say, upload, wav_bytes
from tests.server.fakes import SAMPLE_RATE, WORD_SECONDS, LiveServer, Script, wait_until
from tests.tiny import write_tiny_model

BODY = {"model": "indextts2", "voice": "alice", "input": "one two three", "response_format": "pcm"}

WORD_BYTES = 2 * int(WORD_SECONDS * SAMPLE_RATE)


@contextmanager
def many(server: LiveServer, count: int, **changes: Any) -> Iterator[list[Any]]:
    """So many requests at once, each in a thread of its own."""
    with ThreadPoolExecutor(count) as pool, httpx.Client(base_url=server.url, timeout=30) as client:
        yield [pool.submit(client.post, "/v1/audio/speech", json=BODY | changes) for _ in range(count)]


def admission(server: LiveServer) -> Any:
    return server.app.state.server.admission


def test_1_request_too_many_is_refused_at_once(live: Callable[..., LiveServer], script: Script) -> None:
    server = live(max_running=2, max_waiting=1)
    script.gate.clear()
    with many(server, 3) as waiting, httpx.Client(base_url=server.url) as client:
        wait_until(lambda: admission(server).inside == 3)
        client.get("/livez")
        seconds = []
        for _ in range(5):
            start = time.monotonic()
            refused = client.post("/v1/audio/speech", json=BODY)
            seconds.append(time.monotonic() - start)
            assert error_of(refused, 429)["code"] == "queue_full"
        assert sorted(seconds)[2] < 0.1
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert client.get("/health").json()["waiting"] == 1
        script.gate.set()
        assert [future.result().status_code for future in waiting] == [200] * 3
    assert script.active == 0


def test_1_wrong_keys_take_no_place(live: Callable[..., LiveServer], script: Script) -> None:
    server = live(max_running=1, max_waiting=0, api_keys=("good-key-1",))
    script.gate.clear()
    with many(server, 8) as refused:
        assert {future.result().status_code for future in refused} == {401}
    script.gate.set()
    good = {"Authorization": "Bearer good-key-1"}
    assert httpx.post(f"{server.url}/v1/audio/speech", json=BODY, headers=good).status_code == 200


def test_turns_come_in_order_and_end_after_a_while(live: Callable[..., LiveServer], script: Script) -> None:
    server = live(max_running=1, max_waiting=4, queue_seconds=0.3)
    script.gate.clear()
    with many(server, 3) as futures:
        wait_until(lambda: admission(server).waiting == 2)
        wait_until(lambda: admission(server).waiting == 0)
        script.gate.set()
        codes = sorted(future.result().status_code for future in futures)
    assert codes == [200, 503, 503]
    late = next(future.result() for future in futures if future.result().status_code == 503)
    assert error_of(late, 503)["code"] == "queue_timeout"
    assert "Retry-After" in late.headers
    assert admission(server).inside == admission(server).running == 0


def open_request(server: LiveServer, **changes: Any) -> socket.socket:
    """A raw request whose answer is not read."""
    body = json.dumps(BODY | changes).encode()
    connection = socket.create_connection(("127.0.0.1", server.port))
    head = (
        "POST /v1/audio/speech HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    return connection


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("moment", ["queued", "before the first sound", "in the middle", "at the end"])
def test_2_58_clients_that_leave_stop_the_work(
    live: Callable[..., LiveServer], script: Script, stream: bool, moment: str
) -> None:
    server = live(max_running=1, max_waiting=4)
    script.gate.clear()
    first = open_request(server, stream=stream)
    wait_until(lambda: script.active == 1)
    if moment == "queued":
        second = open_request(server, stream=stream)
        wait_until(lambda: admission(server).waiting == 1)
        second.close()
        assert wait_until(lambda: admission(server).waiting == 0) < 1
        assert script.active == 1, "the other one goes on"
    elif moment == "in the middle":
        script.seconds_per_word = 0.2
        script.gate.set()
        wait_until(lambda: server.app.state.server.service is not None and script.active == 1)
        time.sleep(0.3)
    elif moment == "at the end":
        script.gate.set()
        wait_until(lambda: script.active == 0)
    first.close()
    assert wait_until(lambda: script.active == 0) < 1
    assert wait_until(lambda: admission(server).inside == 0) < 1
    script.gate.set()
    script.seconds_per_word = 0.0
    start = time.monotonic()
    assert httpx.post(f"{server.url}/v1/audio/speech", json=BODY).status_code == 200
    assert time.monotonic() - start < 1


def test_a_client_that_stops_reading_is_cut_off(live: Callable[..., LiveServer], script: Script) -> None:
    server = live(max_running=1, max_waiting=0, send_seconds=0.5)
    connection = open_request(server, input="word " * 800, response_format="pcm")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    wait_until(lambda: script.active == 1)
    wait_until(lambda: script.active == 0, 15)
    wait_until(lambda: admission(server).inside == 0)
    connection.close()


def test_a_body_that_does_not_arrive(live: Callable[..., LiveServer]) -> None:
    server = live(body_seconds=0.3)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(
            b"POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: 1000\r\n\r\n{"
        )
        connection.settimeout(5)
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_bodies_of_all_requests_together_are_bounded(live: Callable[..., LiveServer]) -> None:
    server = live(max_running=1, max_waiting=0, max_json_bytes=100_000, max_upload_bytes=1)
    body = BODY | {"unknown": "x" * 20_000}
    with httpx.Client(base_url=server.url) as client:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            head = "POST /v1/audio/speech HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 99000\r\n\r\n".encode() + b"x" * 90_000)
            wait_until(lambda: client.post("/v1/audio/speech", json=body).status_code == 503)
            refused = client.post("/v1/audio/speech", json=body)
            assert error_of(refused, 503)["code"] == "bodies_full"
            assert "Retry-After" in refused.headers
            assert client.post("/v1/audio/speech", json=BODY).status_code == 200, "there is room for small ones"
        wait_until(lambda: client.post("/v1/audio/speech", json=body).status_code == 200)


def test_4_a_dead_worker_is_replaced(live: Callable[..., LiveServer], script: Script) -> None:
    server = live()
    script.die_at_word = 0
    with httpx.Client(base_url=server.url, timeout=10) as client:
        assert error_of(client.post("/v1/audio/speech", json=BODY), 500)["code"] == "generation_failed"
        assert client.post("/v1/audio/speech", json=BODY).status_code == 200
        assert len(script.engines) == 2
        assert script.engines[0].tts.closed
        script.die_at_word = 1
        with pytest.raises(httpx.RemoteProtocolError):
            client.post("/v1/audio/speech", json=BODY | {"input": "one two"})
        assert client.post("/v1/audio/speech", json=BODY).status_code == 200


def test_5_livez_answers_while_speaking(live: Callable[..., LiveServer], script: Script) -> None:
    server = live()
    script.seconds_per_word = 0.05
    with many(server, 4, input="word " * 30) as futures, httpx.Client(base_url=server.url) as client:
        client.get("/livez")
        seconds = []
        while not all(future.done() for future in futures):
            start = time.monotonic()
            assert client.get("/livez").status_code == 200
            seconds.append(time.monotonic() - start)
            time.sleep(0.02)
    assert len(seconds) > 5
    assert sorted(seconds)[len(seconds) * 9 // 10] < 0.1


def resident_mib() -> float:
    status = Path("/proc/self/status")
    return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024 if status.exists() else 0.0


def test_6_200_mixed_requests_leave_nothing_behind(client: Any, script: Script, tmp_path: Path) -> None:
    files_before = set(Path(tempfile.gettempdir()).glob("*"))
    for _ in range(20):
        say(client)
    threads_before, memory_before = threading.active_count(), resident_mib()
    for index in range(200):
        kind = index % 5
        if kind == 0:
            assert say(client, response_format=["mp3", "opus", "flac", "wav", "pcm"][index // 5 % 5]).status_code == 200
        elif kind == 1:
            assert say(client, stream_format="sse").status_code == 200
        elif kind == 2:
            error_of(say(client, "..."))
        elif kind == 3:
            error_of(say(client, voice="nobody"))
        else:
            assert client.get("/v1/audio/voices").status_code == 200
    assert script.active == 0
    assert client.app.state.server.admission.inside == 0
    assert threading.active_count() <= threads_before + 12
    assert resident_mib() < memory_before + 25
    left = set(Path(tempfile.gettempdir()).glob("*")) - files_before
    assert not [path for path in left if re.search("indextts2|upload|\\.wav|\\.part", path.name)]
    assert len(list((tmp_path / "voices").iterdir())) == 1


def test_the_model_is_let_go_of_and_comes_back(live: Callable[..., LiveServer], script: Script) -> None:
    server = live(idle_unload_seconds=0.3)
    wait_until(lambda: not server.app.state.server.host.loaded)
    assert script.engines[0].tts.closed
    health = httpx.get(f"{server.url}/health").json()
    assert (health["status"], health["model_loaded"]) == ("ready", False)
    assert httpx.get(f"{server.url}/readyz").status_code == 200
    assert httpx.post(f"{server.url}/v1/audio/speech", json=BODY).status_code == 200
    assert len(script.engines) == 2


def test_a_model_in_use_is_not_let_go_of(live: Callable[..., LiveServer], script: Script) -> None:
    server = live(idle_unload_seconds=0.2)
    script.seconds_per_word = 0.3
    response = httpx.post(f"{server.url}/v1/audio/speech", json=BODY | {"input": "one two three"}, timeout=10)
    assert response.status_code == 200
    assert len(response.content) == 3 * WORD_BYTES, "a model that is let go of ends its jobs"


def test_a_model_that_cannot_be_loaded(make_settings: Callable[..., Any]) -> None:
    def broken() -> Any:
        raise CheckpointError("no weights in /secret/place")

    app = create_app(make_settings(), broken)
    with TestClient(app, base_url="http://127.0.0.1") as client:
        wait_until(lambda: app.state.server.failure is not None)
        assert client.get("/readyz").status_code == 503
        assert client.get("/health").json()["status"] == "failed"
        assert client.get("/livez").status_code == 200


def test_57_draining(client: Any) -> None:
    client.app.state.server.admission.draining = True
    assert client.get("/readyz").status_code == 503
    refused = say(client)
    assert error_of(refused, 503)["code"] == "draining"
    assert "Retry-After" in refused.headers
    error_of(upload(client, "other"), 503)
    assert client.get("/livez").status_code == 200


def test_log_lines_have_ids_and_no_secrets(make_client: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    client = make_client(api_keys=("good-key-1",))
    with caplog.at_level(logging.INFO, "indextts2"):
        say(client, "a private text", ref_audio="data:audio/wav;base64,UFJJVkFURQ==")
        response = say(client, "a private text")
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    access = [line for line in lines if line["logger"] == "indextts2.server.access"]
    assert [line["status"] for line in access] == [400, 200]
    assert access[-1]["path"] == "/v1/audio/speech"
    assert access[-1]["bytes_sent"] == len(response.content)
    assert {"time", "level", "request_id", "milliseconds", "client"} <= set(access[-1])
    for secret in ("good-key", "private", "UFJJVkFURQ"):
        assert secret not in json.dumps(lines)


def test_log_lines_carry_the_id_of_their_request(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = collect_log(monkeypatch)
    identity = say(client).headers["X-Request-Id"]
    ours = [line for line in lines if line["request_id"] == identity]
    assert {line["message"] for line in ours} == {"speech stop", "request"}


def test_names_of_voices_are_not_in_the_log(make_client: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    client = make_client(api_keys=("good-key-1",))
    lines = collect_log(monkeypatch)
    client.delete("/v1/audio/voices/alice")
    client.get("/v1/audio/voices/alice")
    client.delete("/v1/audio/voices/alice", headers={"Authorization": "Bearer wrong"})
    assert [(line["path"], line["status"]) for line in lines] == [
        ("/v1/audio/voices/{name}", 200), ("/v1/audio/voices/{name}", 405), ("/v1/audio/voices/{name}", 401)
    ]  # fmt: skip
    assert "alice" not in json.dumps(lines)


def skipped(client: Any) -> dict[str, float]:
    """How many requests ended before the first sound, by reason."""
    figures = client.app.state.server.metrics.registry.collect()
    samples = [sample for figure in figures for sample in figure.samples if sample.name == "indextts2_skipped_total"]
    return {sample.labels["reason"]: sample.value for sample in samples}


def test_requests_that_fail_are_counted_by_their_reason(client: Any, script: Script) -> None:
    say(client, speed=9)
    say(client, model="nope")
    client.get("/v1/models", headers={"Host": "evil.example"})
    upload(client)
    script.fail_at_word, script.failure = 0, GenerationError("it broke")
    say(client)
    items = [{"input": "one"}, {"input": "two", "speed": 9}]
    client.post("/v1/audio/speech/batch", json=BODY | {"items": items})
    with client.websocket_connect("ws://127.0.0.1:8000/v1/audio/speech/stream") as ws:
        ws.send_json({**BODY, "type": "session.config"})
        ws.send_json({"type": "input.text", "text": "One. "})
        assert ws.receive_json()["type"] == "error"
    assert skipped(client) == {"invalid": 2, "not_found": 1, "forbidden": 1, "conflict": 1, "error": 3}


def test_a_failure_after_the_first_sound_is_counted_once(client: Any, script: Script) -> None:
    script.fail_at_word, script.failure = 1, GenerationError("it broke")
    client.post("/v1/audio/speech/batch", json=BODY | {"items": [{"input": "one two"}]})
    with client.websocket_connect("ws://127.0.0.1:8000/v1/audio/speech/stream") as ws:
        ws.send_json({**BODY, "type": "session.config"})
        ws.send_json({"type": "input.text", "text": "One two. "})
        while "bytes" in (message := ws.receive()) or '"error"' not in message["text"]:
            pass
    assert 'success_total{finished_reason="error"} 2.0' in client.get("/metrics").text
    assert skipped(client) == {}


def test_clients_that_leave_before_the_first_sound_are_counted(live: Callable[..., LiveServer], script: Script) -> None:
    server = live()
    script.gate.clear()
    connection = open_request(server)
    wait_until(lambda: script.active == 1)
    connection.close()
    wait_until(lambda: 'skipped_total{reason="cancelled"} 1.0' in httpx.get(f"{server.url}/metrics").text)


def test_log_lines_of_threads_carry_the_id_too(client: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = collect_log(monkeypatch)
    script.engines[0].alive = False
    identity = say(client).headers["X-Request-Id"]
    (line,) = [line for line in lines if line["message"].startswith("the worker of the model has died")]
    assert line["request_id"] == identity


def test_a_failure_inside_the_engine_is_logged_and_not_told(
    make_settings: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any) -> None:
        raise RuntimeError("secret path /home/alice")

    monkeypatch.setattr("indextts2.inference.engine.feed", failing)
    tts = IndexTTS2.from_pretrained(write_tiny_model(tmp_path / "model"), device="cpu")
    app = create_app(make_settings(), lambda: SpeechEngine(tts))
    body = BODY | {"voice": None, "ref_audio": data_url(wav_bytes())}
    errors = {}
    with TestClient(app, base_url="http://127.0.0.1:8000") as client:
        wait_until(lambda: app.state.server.status == "ready")
        lines = collect_log(monkeypatch)
        for identity in ("streamed", "whole"):
            fields = {"json": body | {"stream": identity == "streamed"}, "headers": {"X-Request-Id": identity}}
            errors[identity] = error_of(client.post("/v1/audio/speech", **fields), 500)
        fields = {"json": body | {"items": [{"input": "one"}]}, "headers": {"X-Request-Id": "batch"}}
        errors["batch"] = client.post("/v1/audio/speech/batch", **fields).json()["results"][0]["error"]
        url = "ws://127.0.0.1:8000/v1/audio/speech/stream"
        with client.websocket_connect(url, headers={"X-Request-Id": "websocket"}) as ws:
            ws.send_json({**body, "type": "session.config"})
            ws.send_json({"type": "input.text", "text": "One. "})
            errors["websocket"] = ws.receive_json()["error"]
    told = {(error["code"], error["message"]) for error in errors.values()}
    assert told == {("internal_error", "the server failed; its log says why")}
    causes = {line["request_id"]: line["traceback"] for line in lines if "traceback" in line}
    assert causes.keys() == errors.keys()
    assert all("RuntimeError: secret path" in cause for cause in causes.values())
