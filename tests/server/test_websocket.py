"""Incremental text over a websocket."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from starlette.testclient import WebSocketDenialResponse, WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from indextts2.audio.writer import StreamEncoder
from indextts2.server.websocket import TextSplitter
from tests.server.conftest import data_url, wav_bytes
from tests.server.fakes import SAMPLE_RATE, WORD_SECONDS, Script, wait_until

URL = "/v1/audio/speech/stream"
CONFIG = {"type": "session.config", "model": "indextts2", "voice": "alice", "response_format": "pcm"}
WORD_BYTES = 2 * int(WORD_SECONDS * SAMPLE_RATE)


@contextmanager
def session(client: Any, **config: Any) -> Any:
    with client.websocket_connect(f"ws://127.0.0.1:8000{URL}") as ws:
        ws.send_json(CONFIG | config)
        yield ws


def collect(ws: WebSocketTestSession) -> tuple[list[dict[str, Any]], list[int]]:
    """All messages until the server closes, and the bytes of audio of each part."""
    messages: list[dict[str, Any]] = []
    sizes: list[int] = []
    while True:
        message = ws.receive()
        if message["type"] == "websocket.close":
            return messages, sizes
        if message.get("bytes") is not None:
            sizes[-1] += len(message["bytes"])
        else:
            messages.append(json.loads(message["text"]))
            if messages[-1]["type"] == "audio.start":
                sizes.append(0)


def test_sentences_are_spoken_while_text_arrives(client: Any) -> None:
    with session(client, seed=3) as ws:
        ws.send_json({"type": "input.text", "text": "One two. Thr"})
        start = ws.receive_json()
        assert start == {"type": "audio.start", "index": 0, "text": "One two.", "sample_rate": SAMPLE_RATE,
                         "media_type": "audio/pcm", "seed": 3, "provenance": "synthetic speech"}  # fmt: skip
        assert len(ws.receive_bytes()) + len(ws.receive_bytes()) == 2 * WORD_BYTES
        assert ws.receive_json()["type"] == "audio.done"
        ws.send_json({"type": "input.text", "text": "ee four five"})
        ws.send_json({"type": "input.done"})
        messages, sizes = collect(ws)
    assert [message["type"] for message in messages] == ["audio.start", "audio.done", "session.done"]
    assert messages[0]["text"] == "Three four five"
    assert sizes == [3 * WORD_BYTES]
    assert messages[-1]["usage"] == {"input_tokens": 5, "output_tokens": 50, "total_tokens": 55}


def test_each_part_is_a_file(client: Any) -> None:
    with session(client, response_format="wav", ref_audio=data_url(wav_bytes()), voice=None) as ws:
        ws.send_json({"type": "input.text", "text": "One. "})
        assert ws.receive_json()["media_type"] == "audio/wav"
        assert ws.receive_bytes().startswith(b"RIFF")


def test_audio_is_encoded_beside_the_event_loop(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    class Watched(StreamEncoder):
        def encode(self, samples: np.ndarray) -> bytes:
            threads.add(threading.current_thread().name.partition("_")[0])
            return super().encode(samples)

        def finish(self) -> bytes:
            threads.add(threading.current_thread().name.partition("_")[0])
            return super().finish()

    monkeypatch.setattr("indextts2.server.websocket.stream_encoder", Watched)
    with session(client, response_format="mp3") as ws:
        ws.send_json({"type": "input.text", "text": "One. "})
        ws.send_json({"type": "input.done"})
        collect(ws)
    assert threads == {"speech"}


def test_granularity_none_waits_for_the_end(client: Any) -> None:
    with session(client, split_granularity="none") as ws:
        ws.send_json({"type": "input.text", "text": "One. Two. "})
        ws.send_json({"type": "input.text", "text": "Three."})
        ws.send_json({"type": "input.done"})
        messages, sizes = collect(ws)
    assert messages[0]["text"] == "One. Two. Three."
    assert sizes == [3 * WORD_BYTES]


@pytest.mark.parametrize(
    ("granularity", "pieces", "parts"),
    [
        ("sentence", ["Mr. Smith paid 3.", "50. He left! "], ["Mr. Smith paid 3.50. ", "He left! "]),
        ("sentence", ["你好。再", "见"], ["你好。", "再见"]),
        ("clause", ["First, second; ", "third. Then"], ["First, ", "second; ", "third. ", "Then"]),
        ("clause", ["1,000 men，也许"], ["1,000 men，", "也许"]),
        ("sentence", ["... ", "😀 ", ""], []),
    ],
)  # fmt: skip
def test_splitter(granularity: str, pieces: list[str], parts: list[str]) -> None:
    splitter = TextSplitter(granularity)
    found = [part for piece in pieces for part in splitter.add(piece)] + splitter.finish()
    assert found == parts


def test_splitter_takes_letters_one_by_one_in_linear_time() -> None:
    splitter = TextSplitter("clause")
    start = time.monotonic()
    found = [part for letter in "a word and more " * 2000 for part in splitter.add(letter)] + splitter.finish()
    assert "".join(found) == "a word and more " * 2000
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    "messages",
    [
        ["[1, 2]"],  # 60
        ["null"],
        ["no json"],
        ["[" * 100_000],
        [b"\x00\x01"],
        [{"type": "input.text", "text": "a"}],
        [{**CONFIG, "voice": "nobody"}, {"type": "input.text", "text": "One. "}],
        [{**CONFIG, "voice": None}],
        [{**CONFIG, "model": "gpt-4"}],
        [{**CONFIG, "speed": 9}],
        [{**CONFIG, "split_granularity": "word"}],
        [{**CONFIG, "response_format": "exe"}],
        [CONFIG, {"type": "nonsense"}],
        [CONFIG, {"type": "input.text", "text": 7}],
        [CONFIG, '{"type": "input.text", "text": "\\ud800"}'],
        [CONFIG, {"type": "input.text", "text": "x" * 140_000}],
        [CONFIG, [1]],
        [CONFIG, {"type": "input.text", "text": "One"}, {"type": "input.done"}, {"type": "input.text", "text": "late"}],
    ],
    ids=lambda messages: str(messages[-1])[:50],
)
def test_60_wrong_messages(client: Any, script: Script, messages: list[Any]) -> None:
    script.gate.clear()
    with client.websocket_connect(f"ws://127.0.0.1:8000{URL}") as ws:
        for message in messages:
            if isinstance(message, bytes):
                ws.send_bytes(message)
            elif isinstance(message, str):
                ws.send_text(message)
            else:
                ws.send_json(message)
        answer = ws.receive_json()
        if answer["type"] == "session.done":
            pytest.fail("nothing was wrong")
        assert answer["type"] == "error"
        assert set(answer["error"]) == {"message", "type", "param", "code"}
        with pytest.raises(WebSocketDisconnect):
            ws.receive_json()


def test_59_silence(make_client: Callable[..., Any]) -> None:
    client = make_client(websocket_config_seconds=0.2, websocket_idle_seconds=0.3)
    with client.websocket_connect(f"ws://127.0.0.1:8000{URL}") as ws:
        start = time.monotonic()
        assert ws.receive_json()["error"]["code"] == "idle_timeout"
        assert 0.15 < time.monotonic() - start < 2
    with session(client) as ws:
        assert ws.receive_json()["error"]["code"] == "idle_timeout"


def test_silence_while_speaking_is_no_idleness(make_client: Callable[..., Any], script: Script) -> None:
    client = make_client(websocket_idle_seconds=0.2)
    script.seconds_per_word = 0.2
    with session(client) as ws:
        ws.send_json({"type": "input.text", "text": "one two three four. "})
        assert ws.receive_json()["type"] == "audio.start"
        assert sum(len(ws.receive_bytes()) for _ in range(4)) == 4 * WORD_BYTES


def test_close_and_disconnect_stop_the_work(client: Any, script: Script) -> None:
    for leave in (lambda ws: ws.send_json({"type": "session.close"}), lambda ws: ws.close()):
        script.gate.clear()
        with session(client) as ws:
            ws.send_json({"type": "input.text", "text": "one two. "})
            wait_until(lambda: script.active == 1)
            leave(ws)
            assert wait_until(lambda: script.active == 0) < 1
            assert wait_until(lambda: client.app.state.server.admission.inside == 0) < 1
        script.gate.set()


def test_an_error_while_speaking_is_told(client: Any, script: Script) -> None:
    script.fail_at_word = 1
    with session(client) as ws:
        ws.send_json({"type": "input.text", "text": "one two. "})
        messages, _ = collect(ws)
    assert messages[-1]["error"]["message"] == "the script says so"


def test_limits_and_keys(make_client: Callable[..., Any]) -> None:
    client = make_client(max_running=1, max_waiting=0, api_keys=("good-key-1",))
    with session(client) as first:
        wait_until(lambda: client.app.state.server.admission.inside == 1)
        with session(client) as second:
            assert second.receive_json()["error"]["code"] == "queue_full"
        first.send_json({"type": "session.close"})
        collect(first)
    del client.headers["Authorization"]
    with pytest.raises(WebSocketDenialResponse) as refused, session(client):
        pass
    assert refused.value.status_code == 401


def test_messages_count_among_the_bodies_of_all_requests(make_client: Callable[..., Any]) -> None:
    client = make_client(max_running=2, max_waiting=0, max_json_bytes=80_000, max_upload_bytes=1)
    long = json.dumps(CONFIG) + " " * 100_000  # of 160 000 for all

    def speaks(ws: WebSocketTestSession) -> bool:
        ws.send_json({"type": "input.text", "text": "One. "})
        return bool(ws.receive_json()["type"] == "audio.start")

    with client.websocket_connect(f"ws://127.0.0.1:8000{URL}") as first:
        first.send_text(long)
        assert speaks(first)
        with client.websocket_connect(f"ws://127.0.0.1:8000{URL}") as second:
            second.send_text(long)
            assert second.receive_json()["error"]["code"] == "bodies_full"
        with session(client) as small:
            assert speaks(small)
    with client.websocket_connect(f"ws://127.0.0.1:8000{URL}") as later:
        later.send_text(long)
        assert speaks(later)


def test_foreign_pages_may_not_connect(client: Any) -> None:
    headers = {"Origin": "https://evil.example"}
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client.websocket_connect(f"ws://127.0.0.1:8000{URL}", headers=headers),
    ):
        pass
    assert refused.value.json()["error"]["code"] == "foreign_origin"
