"""Type, press, hear, see: the page in headless Chromium."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig
from indextts2.audio.features import log_mel
from indextts2.audio.formats import pcm16
from indextts2.inference.engine import SpeechEngine
from indextts2.inference.streaming import Mode
from tests.conftest import relative_l2
from tests.page.chromium import ALT, CONTROL, Browser, Page
from tests.page.conftest import Served, voice_file
from tests.page.steps import (
    TEXT,
    choose_voice,
    colours,
    drop,
    expected,
    last_job,
    listen,
    scheduled,
    speak,
    wait_until_done,
    write,
)
from tests.page.tone_engine import RATE, hum
from tests.tiny import tiny_model_config, write_tiny_model

pytestmark = pytest.mark.page


def test_type_press_hear_and_see(page: Page, served: Served) -> None:
    listen(page)
    choose_voice(page, "alice")
    speak(page)
    page.wait("document.getElementById('stage').dataset.state === 'ended'")
    job = last_job(served)
    assert job.request.text == TEXT
    assert getattr(job.request.speaker, "name", None) == "alice"
    assert job.request.emotion is None

    samples, edges = scheduled(page)
    assert np.array_equal(np.round(samples * 32768).astype(np.int16), expected(job))
    gaps = [after[0] - before[1] for before, after in pairwise(edges)]
    assert all(abs(gap) < 1e-3 or gap > 1 for gap in gaps), "two pieces overlap or leave a gap too small to be a pause"
    assert all(abs(begin - round(begin)) < 1e-3 for begin, _ in edges), "a piece begins between two samples"
    assert page.run("window.loudest") > 0.1, "nothing was heard at the loudspeaker"

    assert colours(page, "wave") > 3
    assert colours(page, "mel") > 50
    assert re.fullmatch(r"\d+\.\d\d s", page.text("#first-sound"))
    assert re.fullmatch(r"\d+\.\d\d", page.text("#rtf"))
    assert page.text("#seed-use") == str(job.request.config.seed)
    assert page.text("#clock-all") == f"0:{len(expected(job)) / RATE:04.1f}"
    assert "seconds of speech" in page.text("#status")


@pytest.mark.parametrize("latency", ["exact", "low-latency"])
def test_it_plays_what_the_library_computes(
    browser: Browser, start_server: Callable[..., Served], tmp_path: Path, latency: Mode
) -> None:
    generation = GenerationConfig(min_new_tokens=48, max_mel_tokens=48, num_beams=1)
    config = dataclasses.replace(tiny_model_config(), generation=generation)
    tts = IndexTTS2.from_pretrained(write_tiny_model(tmp_path / "model", config), device="cpu")
    served = start_server(make_engine=lambda: SpeechEngine(tts))
    with browser.page(served.url) as page:
        listen(page)
        page.run(f"document.getElementById('latency').value = {latency!r}")
        drop(page, "#text", voice_file(2.0), "me.wav")
        page.wait("!document.getElementById('keep').hidden")
        speak(page, "One sentence. And one more.")
        page.wait("document.getElementById('stage').dataset.state === 'ended'")
        played, _ = scheduled(page)
        options = InferenceConfig(generation=generation, seed=int(page.text("#seed-use")))
    voice = tts.voice(voice_file(2.0))
    chunks = tts.stream("One sentence. And one more.", voice, config=options, mode=latency)
    computed = np.concatenate([chunk.samples for chunk in chunks])
    assert relative_l2(played, pcm16(computed) / 32768) < 1e-3
    assert np.abs(played).max() > 0.01


def test_it_is_heard_while_it_is_generated_and_survives_a_pause_of_the_server(page: Page, served: Served) -> None:
    listen(page)
    write(page, "I come slowly, but I come.")
    page.click("#speak")
    page.wait("document.getElementById('first-sound').textContent !== '–' && window.loudest > 0.1")
    page.wait("document.getElementById('stage').dataset.state === 'waiting'")
    assert not last_job(served).done
    assert page.text("#speak-label") == "Stop"
    heard, _ = scheduled(page)
    assert len(heard) == 2 * int(0.25 * RATE)
    served.engine.gate.set()
    wait_until_done(page)
    page.wait("document.getElementById('stage').dataset.state === 'ended'")
    samples, _ = scheduled(page)
    assert np.array_equal(np.round(samples * 32768).astype(np.int16), expected(last_job(served)))


def test_escape_stops_the_server_and_keeps_what_came(page: Page, served: Served) -> None:
    write(page, "Speak slowly, I will interrupt you.")
    page.press("Enter", CONTROL)
    page.wait("document.getElementById('first-sound').textContent !== '–'")
    page.press("Escape")
    assert last_job(served).cancelled.wait(1.0), "the server still works a second later"
    wait_until_done(page)
    assert page.text("#status") == "Stopped."
    assert "incomplete" in page.text("#history li")
    assert page.text("#speak-label") == "Speak"


def test_a_break_in_the_middle_is_told(page: Page, served: Served) -> None:
    speak(page, "This breaks after half a second.")
    assert "broke off" in page.text("#error-text")
    assert "incomplete" in page.text("#history li")
    offered = page.run("[...document.querySelectorAll('#downloads button:enabled')].map((node) => node.dataset.format)")
    assert offered == ["wav", "pcm"]
    assert any("ERR_INCOMPLETE_CHUNKED_ENCODING" in problem for problem in page.problems)
    page.problems.clear()


def test_options_are_sent(page: Page, served: Served) -> None:
    page.run("document.getElementById('more').open = true")
    page.run("document.getElementById('speed').focus()")
    page.press("End")
    page.run("document.getElementById('latency').value = 'exact'")
    page.run("document.getElementById('seed').focus()")
    page.type("12345678901234")
    choose_voice(page, "bob")
    speak(page)
    request = last_job(served).request
    assert request.config.seed == 12345678901234
    assert request.config.duration_factor == 0.5
    assert request.mode == "exact"
    assert getattr(request.speaker, "name", None) == "bob"


def test_mel_is_that_of_the_library(page: Page) -> None:
    samples = expected_samples = pcm16(hum("a mel spectrogram", 3))[:30_001]
    script = f"""(async () => {{
        const {{ MelStream, BANDS }} = await import("./mel.js");
        const samples = Float32Array.from({json.dumps(samples.tolist())}, (x) => x / 32768);
        const mel = new MelStream({RATE});
        for (const length of [1, 385, 1024, 5000, 5001, 20000]) mel.update(samples, length);
        mel.update(samples, samples.length, true);
        return Array.from(mel.frames.subarray(0, mel.count * BANDS));
    }})()"""
    frames = np.array(page.run(script), np.float32).reshape(-1, 80).T
    assert relative_l2(frames, log_mel(expected_samples.astype(np.float32) / 32768)) < 1e-5


def test_position_can_be_moved_by_keys_and_mouse(page: Page) -> None:
    speak(page)
    page.wait("document.getElementById('stage').dataset.state === 'ended'")
    page.run("document.getElementById('picture').focus()")
    position = "document.getElementById('picture').getAttribute('aria-valuenow')"
    for key, there in (("Home", "0.0"), ("ArrowRight", "0.5"), ("ArrowRight", "1.0"), ("ArrowLeft", "0.5")):
        page.press(key)
        assert page.run(position) == there
    page.click("#wave")
    duration = float(page.run("document.getElementById('picture').getAttribute('aria-valuemax')"))
    assert float(page.run(position)) == pytest.approx(duration / 2, abs=0.06)
    for key, modifiers, then in ((" ", 0, "Pause"), (" ", 0, "Play"), ("p", ALT, "Pause"), ("p", ALT, "Play")):
        page.press(key, modifiers)
        assert page.run("document.getElementById('play').getAttribute('aria-label')") == then
