"""The catalogue of bad input, by its numbers: each case is answered with a typed error, never with a 5xx."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.server.conftest import data_url, encode, error_of, say, upload, wav_bytes
from tests.server.fakes import Script

SILENCE = np.zeros(32_000)


def wav_header(rate: int = 16_000, channels: int = 1, data: bytes = b"", declared: int | None = None) -> bytes:
    size = len(data) if declared is None else declared
    layout = struct.pack("<HHIIHH", 1, channels, rate, (rate * 2 * channels) % 2**32, (2 * channels) % 2**16, 16)
    riff = 0xFFFFFFFF if size == 0xFFFFFFFF else 36 + size
    return b"RIFF" + struct.pack("<I", riff) + b"WAVEfmt \x10\0\0\0" + layout + b"data" + struct.pack("<I", size) + data


def tone(seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.3 * np.sin(np.arange(int(seconds * rate)) * 2 * np.pi * 180 / rate)


def with_value(value: float) -> bytes:
    samples = tone(2)
    samples[1000] = value
    return encode(samples, 16_000, subtype="FLOAT")


PCM = (tone(2) * 32767).astype("<i2").tobytes()
MP4_VIDEO = b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + b"\0\0\0\x08free" + b"\0" * 5000

AUDIO: dict[str, Callable[[], bytes]] = {
    "1 empty": lambda: b"",
    "2 png": lambda: b"\x89PNG\r\n\x1a\n" + b"\0" * 3000,
    "3 no data chunk": lambda: wav_header()[:36],
    "4 zero frames": lambda: wav_header(),
    "5 truncated": lambda: wav_header(data=PCM)[:-20_000],
    "7 rate 0": lambda: wav_header(rate=0, data=PCM),
    "7 rate 4e9": lambda: wav_header(rate=4_000_000_000, data=PCM),
    "8 rate 1": lambda: wav_header(rate=1, data=PCM),
    "9 channels 0": lambda: wav_header(channels=0, data=PCM),
    "9 channels 65535": lambda: wav_header(channels=65_535, data=PCM),
    "10 channels 1000": lambda: wav_header(channels=1000, data=PCM),
    "11 NaN": lambda: with_value(float("nan")),
    "12 Inf": lambda: with_value(float("inf")),
    "13 amplitude": lambda: with_value(1e30),
    "14 silence": lambda: encode(SILENCE, 16_000),
    "15 short": lambda: wav_bytes(0.4),
    "16 long": lambda: wav_bytes(31.0),
    "19 ADPCM": lambda: encode(tone(2), 16_000, subtype="MS_ADPCM"),
    "21 video": lambda: MP4_VIDEO,
}
BOMBS = {
    "17 FLAC bomb": lambda: encode(np.zeros(6_600_000), 44_100, "FLAC"),
    "18 Opus bomb": lambda: encode(np.zeros(6_000_000), 48_000, "OGG", "OPUS"),
}


@pytest.mark.parametrize("case", AUDIO)
def test_audio(client: Any, script: Script, case: str) -> None:
    error = error_of(upload(client, "other", AUDIO[case]()))
    assert error["param"] == "audio_sample"
    assert error["code"] == "invalid_audio"
    assert client.get("/v1/audio/voices").json()["voices"] == ["alice"]


@pytest.mark.parametrize("case", ["2 png", "11 NaN", "16 long"])
def test_audio_in_a_request(client: Any, case: str) -> None:
    assert error_of(say(client, ref_audio=data_url(AUDIO[case]())))["param"] == "ref_audio"
    assert error_of(say(client, emotion_audio=data_url(AUDIO[case]())))["param"] == "emotion_audio"


def test_6_sizes_left_open_are_accepted(client: Any) -> None:
    assert upload(client, "other", wav_header(data=PCM, declared=0xFFFFFFFF)).status_code == 200


@pytest.mark.parametrize("case", BOMBS)
def test_17_18_bombs(client: Any, case: str) -> None:
    bomb = BOMBS[case]()
    assert len(bomb) < 300_000
    assert error_of(upload(client, "other", bomb), 413)["code"] == "audio_too_large"


def test_20_a_crash_of_the_decoder_is_survived(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crash = "import os, indextts2.audio.loader as l\nl.load_audio = lambda *a, **k: os.abort()\n"
    (tmp_path / "sitecustomize.py").write_text(crash)
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path))
        assert "decoder" in error_of(upload(client, "other", wav_bytes(1.5)))["message"]
    assert upload(client, "other", wav_bytes(1.5)).status_code == 200


def test_a_decoder_that_hangs_is_stopped(
    make_client: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = make_client(voice=False, decode_seconds=1.0)
    hang = "import time, indextts2.audio.loader as l\nl.load_audio = lambda *a, **k: time.sleep(60)\n"
    (tmp_path / "sitecustomize.py").write_text(hang)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    assert "within 1 s" in error_of(upload(client))["message"]
    assert time.monotonic() - start < 5


def test_22_a_body_without_length_is_counted(client: Any) -> None:
    def chunks() -> Any:
        for _ in range(11):
            yield b"x" * 1_000_000

    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    assert error_of(client.post("/v1/audio/voices", content=chunks(), headers=headers), 413)["code"] == "body_too_large"


def test_22_a_length_that_is_too_large_is_refused_unread(client: Any) -> None:
    files = {"audio_sample": ("a.wav", b"x" * 11_000_000, "audio/wav")}
    error_of(client.post("/v1/audio/voices", data={"name": "x", "consent": "y"}, files=files), 413)
    big = {"model": "indextts2", "voice": "alice", "input": "a", "ref_text": "x" * (17 << 20)}
    error_of(client.post("/v1/audio/speech", json=big), 413)


@pytest.mark.parametrize(
    "url",
    [
        "data:audio/wav;base64,@@@@",  # 23
        "data:audio/wav;base64,QUJ",
        "data:text/html;base64,PGI+",  # 24
        "data:audio/wav,abc",
        "data:;base64,QUJD",
        "voice.wav",
        "file:///etc/passwd",
        "http://example.org/a.wav",
        "",
    ],
)
def test_23_24_addresses_of_audio(client: Any, url: str) -> None:
    assert error_of(say(client, ref_audio=url))["param"] == "ref_audio"


def test_25_compressed_bodies(client: Any) -> None:
    body = gzip.compress(json.dumps({"model": "indextts2", "voice": "alice", "input": "a" * 10**6}).encode())
    headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    assert error_of(client.post("/v1/audio/speech", content=body, headers=headers), 415)["type"]


@pytest.mark.parametrize(
    "name", ["../x", "a/b", "a\\b", "a\0b", ".", "..", ".hidden", " ", "a\nb", "a\u202eb", "x" * 300, "a:b", "\u200b"]
)
def test_34_36_names(client: Any, name: str) -> None:
    assert error_of(upload(client, name))["param"] == "name"


@pytest.mark.parametrize("path", ["%2e%2e%2f", "..%2fx", "%2e%2e", "nobody", "%00", "a%5cb", "x" * 300])
def test_35_deleting_what_is_not_there(client: Any, path: str) -> None:
    error_of(client.delete(f"/v1/audio/voices/{path}"), 404)
    assert client.get("/v1/audio/voices").json()["voices"] == ["alice"]


@pytest.mark.parametrize("name", ["alice", "ALICE", " Alice ", "ａlice", "default"])
def test_37_names_that_are_taken(client: Any, name: str) -> None:
    assert error_of(upload(client, name), 409)["code"] == "voice_exists"


def test_37_composed_and_decomposed_names_are_the_same(client: Any) -> None:
    assert upload(client, unicodedata.normalize("NFC", "Zoë")).status_code == 200
    error_of(upload(client, unicodedata.normalize("NFD", "zoë")), 409)
    assert say(client, voice=unicodedata.normalize("NFD", "ZOË")).status_code == 200


def test_38_the_number_of_voices_is_bounded(make_client: Callable[..., Any]) -> None:
    client = make_client(max_voices=2)
    assert upload(client, "second").status_code == 200
    assert error_of(upload(client, "third"), 409)["code"] == "too_many_voices"
    assert client.delete("/v1/audio/voices/second").status_code == 200
    assert upload(client, "third").status_code == 200


@pytest.mark.parametrize("consent", [None, "", " ", "false", "no"])
def test_39_no_consent(client: Any, consent: str | None) -> None:
    form = {"name": "other"} | ({} if consent is None else {"consent": consent})
    response = client.post("/v1/audio/voices", data=form, files={"audio_sample": ("a.wav", wav_bytes(), "audio/wav")})
    assert error_of(response)["param"] == "consent"


@pytest.mark.parametrize("text", ["", "   ", "\n\t", "\u3000", "...", "?!", "😀😀", "，。！", "a" * 4097])
def test_40_42_texts(client: Any, text: str) -> None:
    assert error_of(say(client, text))["param"] == "input"


def test_43_lone_surrogate(client: Any) -> None:
    body = '{"model": "indextts2", "voice": "alice", "input": "a \\ud800 b"}'
    response = client.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"})
    assert error_of(response)["param"] == "input"
    odd = '{"model": "\\ud800", "voice": "alice", "input": "a"}'
    response = client.post("/v1/audio/speech", content=odd, headers={"Content-Type": "application/json"})
    error_of(response)


def test_44_100k_digits_fail_fast(client: Any) -> None:
    start = time.monotonic()
    assert error_of(say(client, "7" * 100_000))["param"] == "input"
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("text", ["a." * 2048, "word " * 400])
def test_45_46_odd_texts_reach_the_model(client: Any, script: Script, text: str) -> None:
    assert say(client, text).status_code == 200
    assert script.requests[-1].text == text


@pytest.mark.parametrize(
    "fields",
    [
        {"speed": 0},
        {"speed": 4.1},
        {"speed": "1.0"},
        {"speed": True},
        {"response_format": "exe"},
        {"response_format": None},
        {"stream_format": "mp3"},
        {"emo_vector": [0.1] * 7},
        {"emo_vector": [True] * 8},
        {"emo_vector": [1.3] + [0] * 7},
        {"emo_vector": [-0.1] + [0] * 7},
        {"emo_vector": ["0.1"] * 8},
        {"emotion": "joyful:1"},
        {"emotion": "happy:2"},
        {"emotion": "happy:1", "emo_vector": [0] * 8},
        {"emo_alpha": 3},
        {"emo_text": "sad"},
        {"use_emo_text": True},
        {"seed": 2**64},
        {"seed": -(2**63) - 1},
        {"seed": 1.5},
        {"seed": "1"},
        {"max_new_tokens": 0},
        {"max_new_tokens": 4097},
        {"latency": "fast"},
        {"preset": "turbo"},
        {"preset": 1},
        {"voice": 7},
        {"voice": {"id": ""}},
        {"voice": "nobody"},
        {"voice": "../alice"},
        {"voice": None},
        {"instructions": "x" * 4097},
        {"stream": "yes"},
    ],
    ids=str,
)
def test_47_51_fields(client: Any, script: Script, fields: dict[str, Any]) -> None:
    error_of(say(client, **fields))
    assert not script.requests, "nothing is spoken"


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_47_numbers_that_are_none(client: Any, number: str) -> None:
    body = f'{{"model": "indextts2", "voice": "alice", "input": "a", "speed": {number}}}'
    response = client.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"})
    assert error_of(response)["param"] == "speed"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"[" * 200_000, b'{"a":' * 200_000, b"1" * 6000, b"{'a': 1}"],
    ids=lambda body: repr(body[:10]),
)
def test_52_json(client: Any, body: bytes) -> None:
    error_of(client.post("/v1/audio/speech", content=body, headers={"Content-Type": "application/json"}))


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_52_other_media_types(client: Any, media_type: str) -> None:
    body = json.dumps({"model": "indextts2", "voice": "alice", "input": "a"})
    error_of(client.post("/v1/audio/speech", content=body, headers={"Content-Type": media_type}))


def test_53_unknown_model(client: Any) -> None:
    assert error_of(say(client, model="gpt-4"), 404)["param"] == "model"


def test_54_batch_of_33_and_of_none(client: Any) -> None:
    for items in ([{"input": "a"}] * 33, []):
        body = {"model": "indextts2", "voice": "alice", "items": items}
        assert error_of(client.post("/v1/audio/speech/batch", json=body))["param"] == "items"


@pytest.mark.parametrize(
    "header",
    [None, "Bearer", "Bearer wrong-key-1", "Basic good-key-1", "good-key-1", "Bearer good-key-12", "Bearer \xff"],
)
def test_55_wrong_key(make_client: Callable[..., Any], script: Script, header: str | None) -> None:
    client = make_client(api_keys=("good-key-1", "good-key-2"))
    for key in ("good-key-1", "good-key-2"):
        assert client.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    del client.headers["Authorization"]
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    body = {"model": "indextts2", "voice": "alice", "input": "a"}
    response = client.post("/v1/audio/speech", json=body, headers=headers)
    assert error_of(response, 401)["type"] == "authentication_error"
    assert "good-key" not in response.text
    assert client.get("/livez").status_code == client.get("/readyz").status_code == 200


def test_61_foreign_origins(client: Any) -> None:
    foreign = {"Origin": "https://evil.example"}
    response = client.get("/v1/models", headers=foreign)
    assert not [name for name in response.headers if name.startswith("access-control")]
    preflight = client.options("/v1/audio/speech", headers=foreign | {"Access-Control-Request-Method": "POST"})
    assert not [name for name in preflight.headers if name.startswith("access-control")]
    body = {"model": "indextts2", "voice": "alice", "input": "a"}
    assert error_of(client.post("/v1/audio/speech", json=body, headers=foreign), 403)["code"] == "foreign_origin"
    own = {"Origin": "http://127.0.0.1:8000"}
    assert client.post("/v1/audio/speech", json=body, headers=own).status_code == 200


def test_61_an_origin_that_is_allowed(make_client: Callable[..., Any]) -> None:
    client = make_client(allowed_origins=("https://good.example",))
    good = {"Origin": "https://good.example"}
    assert client.get("/v1/models", headers=good).headers["access-control-allow-origin"] == "https://good.example"
    body = {"model": "indextts2", "voice": "alice", "input": "a"}
    assert client.post("/v1/audio/speech", json=body, headers=good).status_code == 200
    evil = client.get("/v1/models", headers={"Origin": "https://evil.example"})
    assert "access-control-allow-origin" not in evil.headers


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[evil", ""])
def test_names_that_lead_to_this_machine_from_outside(client: Any, host: str) -> None:
    assert error_of(client.get("/v1/models", headers={"Host": host}), 403)["code"] == "unknown_host"


@pytest.mark.parametrize("host", ["localhost", "localhost:8000", "[::1]:8000", "127.0.0.1"])
def test_names_of_this_machine(client: Any, host: str) -> None:
    assert client.get("/v1/models", headers={"Host": host}).status_code == 200


def test_data_urls_of_many_shapes(client: Any) -> None:
    encoded = base64.b64encode(wav_bytes()).decode()
    for head in ("data:audio/wav;base64,", "DATA:audio/x-wav;BASE64,", "data:audio/webm;codecs=opus;base64,"):
        assert say(client, ref_audio=head + encoded).status_code == 200


def test_equal_clips_are_decoded_once(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = data_url(wav_bytes())
    assert say(client, ref_audio=reference).status_code == 200
    intake = client.app.state.server.service.intake
    monkeypatch.setattr(intake, "_decode", lambda _: pytest.fail("decoded again"))
    assert say(client, ref_audio=reference).status_code == 200


def test_the_cache_of_clips_is_bounded(client: Any) -> None:
    intake = client.app.state.server.service.intake
    for index in range(10):
        assert say(client, ref_audio=data_url(wav_bytes(1.0 + index / 10))).status_code == 200
    assert len(intake._decoded) == 8
