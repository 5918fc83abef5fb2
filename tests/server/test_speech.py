"""Speaking: formats, headers, events, extensions, batch; and how errors are told."""

from __future__ import annotations

import base64
import io
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from indextts2.audio.loader import load_audio
from indextts2.errors import GenerationError
from indextts2.inference.emotion import EmotionAudio, EmotionVector, EmotionWords
from indextts2.inference.voice import Voice
from indextts2.server.tempo import Tempo, split_speed
from tests.server.conftest import data_url, error_of, say, wav_bytes
from tests.server.fakes import SAMPLE_RATE, WORD_SECONDS, Script


@pytest.mark.parametrize(
    ("name", "media_type", "magic"),
    [
        ("mp3", "audio/mpeg", (b"ID3", b"\xff\xfb", b"\xff\xf3")),
        ("opus", "audio/opus", (b"OggS",)),
        ("flac", "audio/flac", (b"fLaC",)),
        ("wav", "audio/wav", (b"RIFF",)),
    ],
)
@pytest.mark.parametrize("stream", [True, False])
def test_formats(client: Any, name: str, media_type: str, magic: tuple[bytes, ...], stream: bool) -> None:
    response = say(client, "word " * 40, response_format=name, stream=stream)
    assert response.status_code == 200
    assert response.headers["content-type"] == media_type
    assert response.content.startswith(magic)
    audio = load_audio(response.content)
    samples, rate = audio.samples, audio.sample_rate
    assert rate == int(response.headers["X-Sample-Rate"])
    assert len(samples) / rate == pytest.approx(40 * WORD_SECONDS, abs=0.15)
    assert np.abs(samples).max() > 0.2
    assert b"synthetic speech" in response.content


def test_pcm_is_the_samples_and_streamed_wav_leaves_its_length_open(client: Any) -> None:
    pcm = say(client, response_format="pcm")
    assert pcm.headers["content-type"] == "audio/pcm"
    wav = say(client, stream=True)
    assert struct.unpack_from("<I", wav.content, 4)[0] == 0xFFFFFFFF
    assert wav.content.endswith(pcm.content)
    assert len(pcm.content) == 2 * 3 * int(WORD_SECONDS * SAMPLE_RATE)
    whole = say(client, stream=False)
    assert struct.unpack_from("<I", whole.content, 4)[0] == len(whole.content) - 8
    assert whole.headers["content-length"] == str(len(whole.content))


def test_headers_name_seed_rate_and_provenance(client: Any) -> None:
    response = say(client, seed=7, language="en", fancy=1)
    assert response.headers["X-Seed"] == "7"
    assert response.headers["X-Sample-Rate"] == str(SAMPLE_RATE)
    assert response.headers["X-Provenance"].startswith("synthetic speech; indextts2 ")
    assert response.headers["X-Ignored-Fields"] == "language, fancy"
    assert len(response.headers["X-Request-Id"]) == 16
    drawn = say(client)
    assert 0 <= int(drawn.headers["X-Seed"]) < 2**32
    assert "X-Ignored-Fields" not in drawn.headers


@pytest.mark.parametrize(("seed", "meant"), [(-1, 2**63 - 1), (-(2**63), 0), (2**63 - 1, 2**63 - 1)])
def test_every_int64_is_a_seed(client: Any, script: Script, seed: int, meant: int) -> None:
    response = say(client, seed=seed)
    assert response.headers["X-Seed"] == str(meant), "as other programs take it"
    assert script.requests[0].config.seed == meant


def test_request_id_is_taken_over_if_it_is_plain(client: Any) -> None:
    assert client.get("/v1/models", headers={"X-Request-Id": "abc-1"}).headers["X-Request-Id"] == "abc-1"
    assert client.get("/v1/models", headers={"X-Request-Id": "a b"}).headers["X-Request-Id"] != "a b"


def test_fields_reach_the_engine(client: Any, script: Script) -> None:
    reference = data_url(wav_bytes(3.0))
    say(client, seed=5, max_new_tokens=77, speed=1.25, latency="low-latency", preset="fast",
        emo_vector=[0, 0, 1.2, 0, 0, 0, 0, 0], emo_alpha=0.5, use_random=True)  # fmt: skip
    say(client, voice=None, ref_audio=reference, emotion_audio=reference, emotion_alpha=0.7)
    say(client, emotion="happy:0.5", voice={"id": "ALICE"}, max_new_tokens=4000)
    first, second, third = script.requests
    assert first.config.seed == 5
    assert first.config.generation is not None
    assert first.config.generation.max_mel_tokens == 77
    assert first.config.duration_factor == pytest.approx(0.8)
    assert first.mode == "low-latency"
    assert (first.config.preset, second.config.preset) == ("fast", "exact")
    assert first.emotion == EmotionVector((0, 0, 1.2, 0, 0, 0, 0, 0), 0.5, True)
    assert isinstance(first.speaker, Voice)
    assert isinstance(second.emotion, EmotionAudio)
    assert second.emotion.alpha == 0.7
    assert second.mode == "exact"
    assert script.engines[0].tts.encoded[-1].duration == pytest.approx(3.0)
    assert isinstance(third.emotion, EmotionVector)
    assert third.emotion.weights[0] == 0.5
    assert third.config.generation is not None
    assert third.config.generation.max_mel_tokens == 800, "bounded by what the model holds"


def test_server_sent_events(client: Any) -> None:
    response = say(client, stream_format="sse", response_format="pcm")
    assert response.headers["content-type"].startswith("text/event-stream")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.split("\n\n") if line]
    assert [event["type"] for event in events] == ["speech.audio.delta"] * 3 + ["speech.audio.done"]
    audio = b"".join(base64.b64decode(event["audio"]) for event in events[:-1])
    assert audio == say(client, response_format="pcm").content
    assert events[-1]["usage"] == {"input_tokens": 3, "output_tokens": 30, "total_tokens": 33}


def test_error_in_the_middle_of_events_is_an_event(client: Any, script: Script) -> None:
    script.fail_at_word, script.failure = 1, GenerationError("it broke")
    response = say(client, stream_format="sse")
    last = json.loads(response.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["type"] == "speech.audio.error"
    assert last["error"]["message"] == "it broke"
    assert last["error"]["code"] == "generation_failed"


@pytest.mark.parametrize("fields", [{"stream": True}, {"stream": False}, {"stream_format": "sse"}])
def test_error_before_the_first_sound_has_its_status(client: Any, script: Script, fields: dict[str, Any]) -> None:
    script.fail_at_word, script.failure = 0, GenerationError("it broke")
    assert error_of(say(client, **fields), 500)["type"] == "server_error"
    script.fail_at_word = None
    assert say(client).status_code == 200


def test_unexpected_failures_tell_nothing(client: Any, script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise RuntimeError("secret path /home/alice")

    monkeypatch.setattr(script.engines[0], "submit", fail)
    error = error_of(say(client), 500)
    assert "secret" not in error["message"]


def test_batch(client: Any) -> None:
    items = [{"input": "one two"}, {"input": "..."}, {"input": "three", "response_format": "flac", "seed": 9}]
    body = {"model": "indextts2", "voice": "alice", "response_format": "wav", "items": items}
    response = client.post("/v1/audio/speech/batch", json=body)
    assert response.status_code == 200
    answer = response.json()
    assert (answer["total"], answer["succeeded"], answer["failed"]) == (3, 2, 1)
    first, second, third = answer["results"]
    assert [item["index"] for item in answer["results"]] == [0, 1, 2]
    assert base64.b64decode(first["audio_data"]).startswith(b"RIFF")
    assert first["usage"]["input_tokens"] == 2
    assert second["status"] == "error"
    assert second["error"]["code"] == "invalid_text"
    assert third["media_type"] == "audio/flac"
    assert third["seed"] == 9
    assert response.headers["X-Provenance"].startswith("synthetic speech; indextts2 ")
    assert third["provenance"].startswith("synthetic speech; indextts2 ")
    assert third["provenance"].endswith(f"seed 9; model {'f' * 16}")
    assert "provenance" not in second


def test_batch_item_with_a_wrong_override_fails_alone(client: Any) -> None:
    items = [{"input": "one", "speed": 9}, {"input": "two", "voice": "nobody"}, {"input": "three"}]
    answer = client.post("/v1/audio/speech/batch", json={"model": "tts-1", "voice": "alice", "items": items}).json()
    assert [result["status"] for result in answer["results"]] == ["error", "error", "success"]
    assert answer["results"][0]["error"]["param"] == "speed"
    assert answer["results"][1]["error"]["param"] == "voice"


VECTOR = [0.0, 0.0, 1.2, 0.0, 0.0, 0.0, 0.0, 0.0]
OTHER = [0.5, *VECTOR[1:]]


@pytest.mark.parametrize(
    ("common", "own", "expected"),
    [
        ({"emo_vector": VECTOR}, {}, EmotionVector(tuple(VECTOR), 1.0, False)),
        ({"emo_vector": VECTOR}, {"emo_vector": OTHER}, EmotionVector(tuple(OTHER), 1.0, False)),
        ({"emotion_vector": VECTOR}, {"emo_vector": OTHER}, EmotionVector(tuple(OTHER), 1.0, False)),
        ({"emo_vector": VECTOR}, {"emotion_vector": OTHER}, EmotionVector(tuple(OTHER), 1.0, False)),
        ({"emotion": "happy:0.7"}, {"emo_vector": OTHER}, EmotionVector(tuple(OTHER), 1.0, False)),
        ({"emo_vector": VECTOR}, {"emotion": "sad:0.5"}, EmotionVector((0, 0, 0.5, 0, 0, 0, 0, 0), 1.0, False)),
        ({"emo_vector": VECTOR, "emo_alpha": 0.5}, {"emo_alpha": 0.7}, EmotionVector(tuple(VECTOR), 0.7, False)),
        ({"emo_vector": VECTOR, "use_random": True}, {"use_random": False}, EmotionVector(tuple(VECTOR), 1.0, False)),
        ({"emo_text": "sadly"}, {"emo_text": "gladly"}, EmotionWords("gladly", 1.0, False)),
        ({"use_emo_text": True}, {"use_emo_text": False}, None),
        ({"emo_vector": VECTOR}, {"use_emo_text": True}, EmotionWords(None, 1.0, False)),
    ],
)  # fmt: skip
def test_an_item_of_a_batch_overrides_the_emotion(
    make_client: Callable[..., Any], script: Script, common: dict[str, Any], own: dict[str, Any], expected: Any
) -> None:
    script.emotion_text_directory = Path("words")
    client = make_client()
    body = {"model": "indextts2", "voice": "alice", **common, "items": [{"input": "one", **own}]}
    assert client.post("/v1/audio/speech/batch", json=body).json()["succeeded"] == 1
    assert script.requests[0].emotion == expected


def test_an_item_of_a_batch_overrides_the_recorded_emotion(client: Any, script: Script) -> None:
    recordings = [data_url(wav_bytes(seconds)) for seconds in (2.0, 3.0)]
    body = {"model": "indextts2", "voice": "alice", "emo_audio": recordings[0],
            "items": [{"input": "one", "emo_audio": recordings[1]}]}  # fmt: skip
    assert client.post("/v1/audio/speech/batch", json=body).json()["succeeded"] == 1
    emotion = script.requests[0].emotion
    assert isinstance(emotion, EmotionAudio)
    assert emotion.audio.duration == pytest.approx(3.0)


def test_an_item_of_a_batch_overrides_the_voice(client: Any, script: Script) -> None:
    reference = data_url(wav_bytes(3.0))
    clips = script.engines[0].tts.encoded
    for common, own, encoded in (
        ({"ref_audio": reference}, {"voice": "alice"}, 0),
        ({"voice": "nobody"}, {"ref_audio": reference}, 1),
        ({"voice": "alice"}, {"ref_audio": None}, 1),
    ):
        body = {"model": "indextts2", **common, "items": [{"input": "one", **own}]}
        assert client.post("/v1/audio/speech/batch", json=body).json()["succeeded"] == 1
        assert len(clips) == encoded


def test_models(client: Any) -> None:
    models = client.get("/v1/models").json()
    assert models["object"] == "list"
    assert [model["id"] for model in models["data"]][:2] == ["indextts2", "tts-1"]
    assert client.get("/v1/models/tts-1").json()["object"] == "model"
    assert error_of(client.get("/v1/models/nope"), 404)["code"] == "model_not_found"


def test_health_and_metrics(client: Any) -> None:
    say(client)
    assert client.get("/livez").text == "ok"
    assert client.get("/readyz").json() == {"status": "ready"}
    health = client.get("/health").json()
    assert health["status"] == "ready"
    assert health["sample_rate"] == SAMPLE_RATE
    text = client.get("/metrics").text
    assert 'indextts2_success_total{finished_reason="stop"} 1.0' in text
    assert "indextts2_requests_running 0.0" in text
    for name in ("e2e_latency_seconds", "time_to_first_audio_seconds", "rtf", "audio_duration_seconds"):
        assert f"indextts2_{name}_count 1.0" in text


def test_unknown_address_and_method(client: Any) -> None:
    assert error_of(client.get("/v1/nothing"), 404)["code"] == "unknown_url"
    assert error_of(client.get("/v1/audio/speech"), 405)["type"] == "invalid_request_error"


@pytest.mark.parametrize("speed", [0.25, 0.4, 0.5, 1.0, 1.7, 2.0, 3.0, 4.0])
def test_speed_is_shared_between_model_and_tempo(speed: float) -> None:
    factor, rest = split_speed(speed)
    assert 0.5 <= factor <= 2.0
    assert rest / factor == pytest.approx(speed)
    assert (rest == 1.0) == (0.5 <= speed <= 2.0)


@pytest.mark.parametrize("speed", [0.5, 0.8, 1.5, 2.0])
def test_tempo_changes_the_length_but_not_the_pitch(speed: float) -> None:
    t = np.arange(2 * SAMPLE_RATE) / SAMPLE_RATE
    tone = (0.4 * np.sin(2 * np.pi * 200 * t)).astype(np.float32)
    tempo = Tempo(speed, SAMPLE_RATE)
    parts = [tempo.stretch(part, False) for part in np.array_split(tone, 7)]
    out = np.concatenate([*parts, tempo.stretch(np.zeros(0, np.float32), True)])
    assert len(out) == pytest.approx(len(tone) / speed, rel=0.05)
    spectrum = np.abs(np.fft.rfft(out * np.hanning(len(out))))
    assert np.argmax(spectrum) * SAMPLE_RATE / len(out) == pytest.approx(200, abs=2)
    assert np.abs(out).max() < 0.45
    assert np.abs(np.diff(out)).max() < 0.05, "no clicks: a 200 Hz tone moves by 0.023 a sample"


def test_tempo_of_little_or_nothing() -> None:
    assert len(Tempo(2.0, SAMPLE_RATE).stretch(np.zeros(0, np.float32), True)) == 0
    assert len(Tempo(2.0, SAMPLE_RATE).stretch(np.ones(10, np.float32), True)) == 10
    same = np.ones(5, np.float32)
    assert Tempo(1.0, SAMPLE_RATE).stretch(same, False) is same


def test_fast_speech_is_shorter(client: Any) -> None:
    text = "word " * 30
    normal = say(client, text, response_format="pcm").content
    fast = say(client, text, response_format="pcm", speed=4).content
    # The fake engine does not stretch; what is left for the tempo is a factor of two.
    assert len(fast) == pytest.approx(len(normal) / 2, rel=0.1)


@pytest.mark.parametrize("stream", [True, False])
def test_aac(client: Any, stream: bool) -> None:
    av = pytest.importorskip("av")
    response = say(client, "word " * 20, response_format="aac", stream=stream)
    assert response.headers["content-type"] == "audio/aac"
    assert b"synthetic speech" in response.content[:500]
    with av.open(io.BytesIO(response.content)) as decoder:
        frames = [frame.to_ndarray()[0] for frame in decoder.decode(audio=0)]
        assert decoder.streams[0].rate == SAMPLE_RATE
    samples = np.concatenate(frames)
    assert len(samples) / SAMPLE_RATE == pytest.approx(20 * WORD_SECONDS, abs=0.15)
    assert np.abs(samples).max() > 0.2


def test_aac_without_its_package_names_the_remedy(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("indextts2.server.encoders.find_spec", lambda _: None)
    message = error_of(say(client, response_format="aac"))["message"]
    assert "indextts2[aac]" in message
    assert "choose mp3" in message


def test_voice_alias_and_default(make_client: Callable[..., Any], script: Script) -> None:
    client = make_client(voice_aliases={"alloy": "alice"})
    assert say(client, voice="alloy").status_code == 200
    assert say(client, voice="default").status_code == 200
    assert "alloy" in client.get("/v1/audio/voices").json()["voices"]
