"""The server around a real model of random weights, for what the stand-in of the engine cannot show."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from indextts2.audio.writer import encode_audio
from indextts2.config import GenerationConfig
from indextts2.inference.engine import SpeechEngine
from indextts2.inference.pipeline import IndexTTS2
from indextts2.server.app import create_app
from indextts2.server.settings import ServerSettings
from tests.server.conftest import upload
from tests.server.fakes import serve_in_thread
from tests.tiny import recording, tiny_model_config, write_tiny_model

CODES = 6  # of every segment
LIVEZ_SECONDS = 2.0


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generation = GenerationConfig(num_beams=1, min_new_tokens=CODES, max_mel_tokens=CODES)
    config = dataclasses.replace(tiny_model_config(), generation=generation)
    return write_tiny_model(tmp_path_factory.mktemp("tiny") / "model", config)


@pytest.fixture
def client(model: Path, make_settings: Callable[..., ServerSettings], one_thread: None) -> Iterator[httpx.Client]:
    """A client of a server that has the voice alice."""
    tts = IndexTTS2.from_pretrained(model, device="cpu", warm_up=False)
    app = create_app(make_settings(), lambda: SpeechEngine(tts, max_running=2))
    with serve_in_thread(app) as live, httpx.Client(base_url=live.url, timeout=120) as client:
        sample = recording(1.5)
        audio = encode_audio(sample.samples, sample.sample_rate, "wav", synthetic=False)
        assert upload(client, audio=audio).status_code == 200
        yield client


def usage(client: httpx.Client, text: str) -> dict[str, int]:
    """Speak a text; the tokens in and the codes out."""
    body = {"model": "indextts2", "voice": "alice", "items": [{"input": text}]}
    result: dict[str, Any] = client.post("/v1/audio/speech/batch", json=body).json()["results"][0]
    assert result["status"] == "success", result
    return result["usage"]


def test_5_livez_answers_while_a_real_model_speaks(client: httpx.Client) -> None:
    def get(path: str) -> httpx.Response:
        # A connection of its own: one that is kept open may end just when it is used again.
        return httpx.get(client.base_url.join(path), timeout=LIVEZ_SECONDS)

    body = {"model": "indextts2", "voice": "alice", "input": "a." * 2048, "response_format": "pcm", "stream": False}
    answered_meanwhile = 0
    with ThreadPoolExecutor(1) as pool:
        speech = pool.submit(client.post, "/v1/audio/speech", json=body)
        while not speech.done():
            assert get("/livez").text == "ok"
            answered_meanwhile += not speech.done()
        assert speech.result().status_code == 200
    assert answered_meanwhile, "it answered only when the speech had ended"


def test_45_a_long_run_of_letters_takes_linear_time(client: httpx.Client) -> None:
    usage(client, "a.")
    seconds, spoken = [], []
    for pairs in (512, 2048):
        start = time.process_time()  # the server runs in this process; other processes do not count
        spoken.append(usage(client, "a." * pairs))
        seconds.append(time.process_time() - start)
    assert spoken[1]["input_tokens"] >= 2048, "every letter is spoken"
    assert seconds[1] < 8 * seconds[0], "4 times the text; 16 times would be quadratic"


def test_46_a_text_without_punctuation_is_split(client: httpx.Client) -> None:
    spoken = usage(client, "word " * 400)
    assert spoken["input_tokens"] >= 400
    assert spoken["output_tokens"] >= 2 * CODES, "several segments"
