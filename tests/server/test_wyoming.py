"""The Wyoming server, spoken to by the client of the `wyoming` package and by raw sockets."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from indextts2.config import InferenceConfig
from indextts2.errors import Cancelled, TextError, UsageError
from indextts2.inference.engine import SpeechRequest
from indextts2.server.admission import Admission
from indextts2.server.app import create_app
from indextts2.server.settings import ServerSettings
from indextts2.server.wyoming import MAX_SENTENCE_CHARACTERS, MAX_TEXT_CHARACTERS, WyomingServer, split_sentences
from indextts2.server.wyoming_events import MAX_DATA_BYTES, MAX_LINE_BYTES, MAX_PAYLOAD_BYTES
from indextts2.types import AudioChunk
from tests.page.tone_engine import HumEngine, hum
from tests.server.conftest import collect_log

pytest.importorskip("wyoming", reason="the client of the Wyoming protocol comes with the extra `dev`")
from wyoming.audio import AudioChunk as AudioChunkEvent
from wyoming.audio import AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.error import Error
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.tts import (
    Synthesize,
    SynthesizeChunk,
    SynthesizeStart,
    SynthesizeStop,
    SynthesizeStopped,
    SynthesizeVoice,
)

RATE = 22050
TIMEOUT_SECONDS = 20


@dataclass
class ToneJob:
    """Says a text as a tone whose length and pitch tell how long the text is."""

    request: SpeechRequest
    hold: threading.Event | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def __iter__(self) -> Iterator[AudioChunk]:
        if "unspeakable" in self.request.text:
            raise TextError("nothing of this can be spoken; send words")
        if "broken" in self.request.text:
            raise ZeroDivisionError("a bug")
        samples = tone(self.request.text)
        for index, part in enumerate(np.array_split(samples, 3)):
            if index and self.hold is not None:
                while not self.hold.wait(0.01):
                    if self.cancelled.is_set():
                        raise Cancelled("cancelled")
            yield AudioChunk(index, part, RATE, self.request.text, index == 2)

    def cancel(self) -> None:
        self.cancelled.set()


def tone(text: str) -> np.ndarray:
    times = np.arange(len(text) * 500) / RATE
    return (0.5 * np.sin(2 * np.pi * (200 + 10 * len(text)) * times)).astype(np.float32)


def pcm(samples: np.ndarray) -> bytes:
    return (samples * np.float32(32767)).astype("<i2").tobytes()


@dataclass
class ToneEngine:
    hold: threading.Event | None = None
    jobs: list[ToneJob] = field(default_factory=list)

    def submit(self, request: SpeechRequest) -> ToneJob:
        self.jobs.append(ToneJob(request, self.hold))
        return self.jobs[-1]


class TwoVoices:
    def names(self) -> Sequence[str]:
        return ["alice", "bob"]

    def speaker(self, name: str | None) -> str:
        if name not in (None, "alice", "bob"):
            raise UsageError(f"no voice is called {name!r}; known are alice, bob")
        return f"{name or 'alice'}.wav"


Talk = Callable[[WyomingServer, ToneEngine], Awaitable[None]]


def converse(talk: Talk, hold: threading.Event | None = None, **options: object) -> ToneEngine:
    """Run `talk` against a server on a free port; the server must not leave a task behind."""
    engine = ToneEngine(hold)

    async def run() -> None:
        server = WyomingServer(engine, TwoVoices(), port=0, **options)
        await server.start()
        try:
            await asyncio.wait_for(talk(server, engine), TIMEOUT_SECONDS)
        finally:
            await server.stop(timeout_seconds=5)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    return engine


async def receive(client: AsyncTcpClient, until: Callable[[str], bool]) -> list[Event]:
    """Events up to the one that `until` knows, or to the end of the stream."""
    events = []
    while (event := await client.read_event()) is not None:
        events.append(event)
        if until(event.type):
            break
    return events


def audio_of(events: list[Event]) -> bytes:
    return b"".join(AudioChunkEvent.from_event(e).audio for e in events if AudioChunkEvent.is_type(e.type))


def test_describe_lists_the_voices() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Describe().event())
            info = Info.from_event(await client.read_event())
            assert not info.asr
            (program,) = info.tts
            assert program.supports_synthesize_streaming and program.installed and program.version
            assert [voice.name for voice in program.voices] == ["alice", "bob"]
            assert program.voices[0].languages == ["en"]
            await client.write_event(Ping(text="are you there").event())
            assert Pong.from_event(await client.read_event()).text == "are you there"

    converse(talk, languages=lambda: ["en"])


def test_synthesize_gives_the_audio_of_the_engine() -> None:
    text = "Turn the light on. It is dark!"

    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            for voice in (None, SynthesizeVoice(name="bob"), SynthesizeVoice(language="en-GB")):
                await client.write_event(Synthesize(text, voice).event())
                events = await receive(client, AudioStop.is_type)
                start = AudioStart.from_event(events[0])
                assert (start.rate, start.width, start.channels) == (RATE, 2, 1)
                assert events[0].data["provenance"].startswith("synthetic speech")
                assert {event.type for event in events[1:-1]} == {"audio-chunk"}
                assert audio_of(events) == pcm(tone(text))
                assert AudioStop.from_event(events[-1]).timestamp == len(tone(text)) * 1000 // RATE

    engine = converse(talk, config=InferenceConfig(seed=3), mode="exact")
    assert [job.request.speaker for job in engine.jobs] == ["alice.wav", "bob.wav", "alice.wav"]
    assert {(job.request.text, job.request.config.seed, job.request.mode) for job in engine.jobs} == {
        (text, 3, "exact")
    }


def test_a_speaker_without_a_name_is_a_voice() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Event("synthesize", {"text": "Hi", "voice": {"speaker": "bob"}}))
            await receive(client, AudioStop.is_type)

    assert converse(talk).jobs[0].request.speaker == "bob.wav"


def test_streamed_text_is_spoken_sentence_by_sentence_while_it_arrives() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(SynthesizeStart(voice=SynthesizeVoice(name="bob")).event())
            for piece in ("The first ", "sentence. ", "The sec"):
                await client.write_event(SynthesizeChunk(piece).event())
            # Heard before the text is complete:
            first = [await client.read_event() for _ in range(4)]
            assert [event.type for event in first] == ["audio-start", *["audio-chunk"] * 3]
            await client.write_event(SynthesizeChunk("ond, and the last").event())
            await client.write_event(Synthesize("The first sentence. The second, and the last").event())
            await client.write_event(SynthesizeStop().event())
            events = first + await receive(client, SynthesizeStopped.is_type)
            assert [event.type for event in events].count("audio-start") == 1
            assert [event.type for event in events[-2:]] == ["audio-stop", "synthesize-stopped"]
            silence = b"\0\0" * int(0.2 * RATE)
            spoken = [pcm(tone(text)) for text in ("The first sentence. ", "The second, and the last")]
            assert audio_of(events) == silence.join(spoken)
            # The connection still serves afterwards.
            await client.write_event(Synthesize("Again.").event())
            assert audio_of(await receive(client, AudioStop.is_type)) == pcm(tone("Again."))

    engine = converse(talk)
    assert [job.request.text for job in engine.jobs] == ["The first sentence. ", "The second, and the last", "Again."]
    assert engine.jobs[0].request.speaker == "bob.wav"


def test_a_stream_without_words_stops_without_audio() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(SynthesizeStart().event())
            await client.write_event(SynthesizeChunk(" … \n").event())
            await client.write_event(SynthesizeStop().event())
            events = await receive(client, SynthesizeStopped.is_type)
            assert [event.type for event in events] == ["synthesize-stopped"]

    assert not converse(talk).jobs


async def error_of(server: WyomingServer, *events: Event) -> Error:
    """The error that ends a connection after these events."""
    async with AsyncTcpClient(server.host, server.port) as client:
        for event in events:
            await client.write_event(event)
        answers = await receive(client, lambda kind: False)
        return Error.from_event(answers[-1])


@pytest.mark.parametrize(
    ("events", "code", "message"),
    [
        ([Synthesize("   ").event()], "invalid_text", "no text"),
        ([Synthesize("unspeakable").event()], "invalid_text", "send words"),
        ([Synthesize("broken").event()], "internal_error", "log"),
        ([Synthesize("Hi", SynthesizeVoice(name="carol")).event()], "invalid_value", "alice, bob"),
        ([Synthesize("Bonjour", SynthesizeVoice(language="fr")).event()], "invalid_value", "there are: en"),
        ([Event("synthesize", {"text": "Hi", "voice": {"speaker": "carol"}})], "invalid_value", "alice, bob"),
        ([Synthesize("<speak/>", text_format="ssml").event()], "invalid_value", "ssml"),
        ([Event("synthesize", {"text": 3})], "invalid_value", "string"),
        ([Event("synthesize", {"text": "Hi", "voice": {"name": ["alice"]}})], "invalid_value", "string"),
        ([Event("synthesize", {})], "invalid_value", "string"),
        ([SynthesizeChunk("Hi").event()], "invalid_value", "synthesize-start"),
        ([SynthesizeStop().event()], "invalid_value", "synthesize-start"),
        ([SynthesizeStart().event(), SynthesizeStart().event()], "invalid_value", "twice"),
        ([Synthesize("a" * (MAX_TEXT_CHARACTERS + 1)).event()], "invalid_text", str(MAX_TEXT_CHARACTERS)),
    ],
)
def test_errors_are_named_and_end_the_connection(events: list[Event], code: str, message: str) -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        error = await error_of(server, *events)
        assert error.code == code
        assert message in error.text

    converse(talk)


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", "not JSON"),
        (b"[1]\n", "JSON object"),
        (b"[" * 60_000 + b"\n", "not JSON"),
        (b'{"data": {}}\n', "type"),
        (b'{"type": "describe", "data": 3}\n', "JSON object"),
        (b'{"type": "describe", "data_length": -1}\n', "data_length"),
        (b'{"type": "describe", "data_length": true}\n', "data_length"),
        (b'{"type": "synthesize", "data_length": 2}\n[]', "JSON object"),
        (json.dumps({"type": "x", "data_length": MAX_DATA_BYTES + 1}).encode() + b"\n", "data_length"),
        (json.dumps({"type": "x", "payload_length": MAX_PAYLOAD_BYTES + 1}).encode() + b"\n", "payload_length"),
        (b'{"type": "' + b"x" * MAX_LINE_BYTES + b'"}\n', "longer than"),
        (b'{"type": "\xff"}\n', "not JSON"),
    ],
)
def test_what_is_no_event_is_refused(sent: bytes, message: str) -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        reader, writer = await asyncio.open_connection(server.host, server.port)
        writer.write(sent)
        answer = await reader.read()
        assert message in json.loads(answer.split(b"\n", 1)[1])["text"]
        writer.close()
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Describe().event())
            assert Info.is_type((await client.read_event()).type)

    converse(talk)


def test_unknown_events_and_payloads_are_skipped() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Event("select-program", {"name": "indextts2"}))
            await client.write_event(Event("audio-chunk", {"rate": 1, "width": 2, "channels": 1}, b"\1" * 100_000))
            await client.write_event(Describe().event())
            assert Info.is_type((await client.read_event()).type)

    converse(talk)


def test_a_client_that_goes_away_stops_its_synthesis_and_nobody_elses() -> None:
    hold = threading.Event()

    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as patient:
            await patient.write_event(Synthesize("I stay.").event())
            assert AudioStart.is_type((await patient.read_event()).type)
            async with AsyncTcpClient(server.host, server.port) as hasty:
                await hasty.write_event(Synthesize("I leave.").event())
                assert AudioStart.is_type((await hasty.read_event()).type)
            assert await asyncio.to_thread(engine.jobs[1].cancelled.wait, 1.0), "not cancelled within a second"
            hold.set()
            assert AudioStop.is_type((await receive(patient, AudioStop.is_type))[-1].type)

    engine = converse(talk, hold)
    assert not engine.jobs[0].cancelled.is_set()


def test_stop_lets_running_speech_end() -> None:
    hold = threading.Event()

    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Synthesize("Let me finish.").event())
            assert AudioStart.is_type((await client.read_event()).type)
            stopping = asyncio.create_task(server.stop(timeout_seconds=0.2))
            await stopping
            assert engine.jobs[0].cancelled.is_set()
            events = await receive(client, AudioStop.is_type)
            assert not events or not AudioStop.is_type(events[-1].type)

    converse(talk, hold)

    async def talk_to_the_end(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Synthesize("Let me finish.").event())
            assert AudioStart.is_type((await client.read_event()).type)
            stopping = asyncio.create_task(server.stop(timeout_seconds=10))
            await asyncio.sleep(0.05)
            hold.set()
            events = await receive(client, AudioStop.is_type)
            assert AudioStop.is_type(events[-1].type)
            await stopping

    hold.clear()
    converse(talk_to_the_end, hold)


def test_a_client_that_stops_reading_is_cut_off() -> None:
    admission = Admission(1, 0, queue_seconds=5.0)

    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        deaf = socket.socket()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        with deaf:
            deaf.connect((server.host, server.port))
            deaf.sendall(json.dumps({"type": "synthesize", "data": {"text": "word " * 4000}}).encode() + b"\n")
            while not engine.jobs:
                await asyncio.sleep(0.01)
            while admission.inside or admission.running:
                await asyncio.sleep(0.01)
            assert engine.jobs[0].cancelled.is_set()

    converse(talk, admission=admission, send_seconds=0.3)


def test_admission_may_refuse_and_is_left_again() -> None:
    admission = Admission(1, 0, queue_seconds=5.0)
    hold = threading.Event()

    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(Synthesize("I am inside.").event())
            assert AudioStart.is_type((await client.read_event()).type)
            assert (await error_of(server, Synthesize("Me too").event())).code == "queue_full"
            hold.set()
            await receive(client, AudioStop.is_type)
            await client.write_event(Synthesize("Again.").event())
            await receive(client, AudioStop.is_type)
        assert (admission.inside, admission.running) == (0, 0)

    converse(talk, hold, admission=admission)


def test_a_text_that_has_begun_is_not_refused_in_the_middle() -> None:
    admission = Admission(1, 0, queue_seconds=5.0)

    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            await client.write_event(SynthesizeStart().event())
            await client.write_event(SynthesizeChunk("The first sentence. ").event())
            await receive(client, AudioChunkEvent.is_type)
            while admission.running:
                await asyncio.sleep(0.01)
            assert (await error_of(server, Synthesize("Me too").event())).code == "queue_full"
            await client.write_event(SynthesizeChunk("The second.").event())
            await client.write_event(SynthesizeStop().event())
            assert SynthesizeStopped.is_type((await receive(client, SynthesizeStopped.is_type))[-1].type)

    engine = converse(talk, admission=admission)
    assert [job.request.text for job in engine.jobs] == ["The first sentence. ", "The second."]


def test_silent_clients_are_let_go() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as client:
            assert await client.read_event() is None

    converse(talk, idle_timeout_seconds=0.05)


def test_connections_are_limited() -> None:
    async def talk(server: WyomingServer, engine: ToneEngine) -> None:
        async with AsyncTcpClient(server.host, server.port) as first:
            await first.write_event(Describe().event())
            await first.read_event()
            assert "later" in (await error_of(server)).text
        answer = None
        while answer != "info":
            async with AsyncTcpClient(server.host, server.port) as next_one:
                await next_one.write_event(Describe().event())
                answer = (await next_one.read_event()).type

    converse(talk, max_connections=1)


@pytest.mark.parametrize(
    ("text", "sentences", "rest"),
    [
        ("One. Two! Three", ["One. ", "Two! "], "Three"),
        ('She said "No." Then', ['She said "No." '], "Then"),
        ("It costs 3.50 or v1.2.3", [], "It costs 3.50 or v1.2.3"),
        ("Dr. Smith and J. Doe met. At", ["Dr. Smith and J. Doe met. "], "At"),
        ("你好。世界！再", ["你好。", "世界！"], "再"),
        ("A title\nText", ["A title\n"], "Text"),
        ("Ends here.", [], "Ends here."),
        ("", [], ""),
    ],
)
def test_split_sentences(text: str, sentences: list[str], rest: str) -> None:
    assert split_sentences(text) == (sentences, rest)


def test_text_without_marks_is_cut_at_a_space() -> None:
    text = "word " * MAX_SENTENCE_CHARACTERS
    sentences, rest = split_sentences(text[:-1])
    assert "".join([*sentences, rest]) == text[:-1]
    assert len(rest) <= MAX_SENTENCE_CHARACTERS


def test_it_is_part_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--wyoming-port` speaks with the same engine, in turn with the requests that come over HTTP."""
    engine = HumEngine()
    settings = ServerSettings(voices_directory=tmp_path, wyoming_port=0)
    app = create_app(settings, lambda: engine)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            state = app.state.server
            lines = collect_log(monkeypatch)
            async with AsyncTcpClient(state.wyoming.host, state.wyoming.port) as client:
                await client.write_event(Describe().event())
                (program,) = Info.from_event(await client.read_event()).tts
                assert program.voices[0].languages == ["en"]
                await client.write_event(Synthesize("Hello, slowly.", SynthesizeVoice(program.voices[0].name)).event())
                assert AudioStart.is_type((await client.read_event()).type)
                assert state.admission.inside == 1
                engine.gate.set()
                events = await receive(client, AudioStop.is_type)
            assert audio_of(events) == pcm(hum("Hello, slowly.", 0))
            assert state.admission.inside == 0
            assert (await error_of(state.wyoming, Synthesize("unspeakable").event())).code == "invalid_text"
            figures = state.metrics.text().decode()
        assert 'indextts2_success_total{finished_reason="stop"} 1.0' in figures
        assert 'indextts2_skipped_total{reason="invalid"} 1.0' in figures
        for name in ("e2e_latency_seconds", "time_to_first_audio_seconds", "rtf", "audio_duration_seconds"):
            assert f"indextts2_{name}_count 1.0" in figures
        access = [line for line in lines if line["logger"] == "indextts2.server.access"]
        assert [(line["method"], line["status"]) for line in access] == [("WYOMING", 200), ("WYOMING", 400)]
        assert access[0]["bytes_sent"] > 2 * len(hum("Hello, slowly.", 0))
        (spoken,) = [line for line in lines if line["message"] == "speech stop"]
        assert spoken["request_id"] == access[0]["request_id"] != access[1]["request_id"]

    asyncio.run(asyncio.wait_for(run(), 60))
