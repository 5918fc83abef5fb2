"""The web page in headless Chromium: type, press, hear, see. Run by `make test-page`."""

from __future__ import annotations

import dataclasses
import io
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile

from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig
from indextts2.audio.features import log_mel
from indextts2.audio.formats import pcm16
from indextts2.inference.emotion import EmotionAudio, EmotionVector
from indextts2.inference.engine import SpeechEngine
from indextts2.inference.streaming import Mode
from indextts2.models.emotion.vector import normalize_emotion_vector
from indextts2.server.app import PAGE
from tests.conftest import relative_l2
from tests.page.chromium import ALT, CONTROL, Browser, Page
from tests.page.conftest import KEY, Served, add_voice, voice_file
from tests.page.tone_engine import RATE, HumJob, hum
from tests.tiny import tiny_model_config, write_tiny_model

pytestmark = pytest.mark.page

TEXT = "Hello, this is a page that speaks."

# Notes what is scheduled for playback, and listens at the way to the loudspeaker.
EAR = """
window.pieces = [];
window.loudest = 0;
const start = AudioBufferSourceNode.prototype.start;
AudioBufferSourceNode.prototype.start = function (when) {
    pieces.push({ when, samples: Array.from(this.buffer.getChannelData(0)), rate: this.context.sampleRate });
    return start.call(this, when);
};
const connect = AudioNode.prototype.connect;
AudioNode.prototype.connect = function (target, ...rest) {
    if (target instanceof AudioDestinationNode && !this.context.ear) {
        const ear = (this.context.ear = new AnalyserNode(this.context));
        const samples = new Float32Array(ear.fftSize);
        setInterval(() => {
            ear.getFloatTimeDomainData(samples);
            window.loudest = Math.max(window.loudest, ...samples.map(Math.abs));
        }, 10);
    }
    if (target instanceof AudioDestinationNode) connect.call(this, this.context.ear);
    return connect.call(this, target, ...rest);
};
"""


def listen(page: Page) -> None:
    """Put an ear to the page. Its samples are kept exactly, so they can be compared."""
    page.run(f"(() => {{ {EAR} }})()")


def write(page: Page, text: str) -> None:
    page.run("document.getElementById('text').select()")
    page.run("document.getElementById('text').focus()")
    page.type(text)


def choose_voice(page: Page, name: str) -> None:
    page.click(f'.tile:has([value="{name}"])')


def wait_until_done(page: Page, entries: int = 1) -> None:
    page.wait(f"document.querySelectorAll('#history li').length === {entries}")


def speak(page: Page, text: str = TEXT, entries: int = 1) -> None:
    write(page, text)
    page.click("#speak")
    wait_until_done(page, entries)


def last_job(served: Served) -> HumJob:
    return served.engine.jobs[-1]


def expected(job: HumJob) -> np.ndarray:
    """What the page must have received for a job."""
    return pcm16(hum(job.request.text, job.request.config.seed or 0))


def colours(page: Page, canvas: str) -> int:
    """How many different colours a canvas shows."""
    return int(
        page.run(
            f"""(() => {{
                const canvas = document.getElementById({canvas!r});
                const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
                return new Set(new Uint32Array(data.buffer)).size;
            }})()"""
        )
    )


def scheduled(page: Page) -> tuple[np.ndarray, list[tuple[float, float]]]:
    """All samples in the order of their playing, and begin and end of each piece in samples."""
    pieces = page.run("window.pieces")
    samples = np.concatenate([np.array(piece["samples"], np.float32) for piece in pieces])
    edges = [(p["when"] * p["rate"], p["when"] * p["rate"] + len(p["samples"])) for p in pieces]
    return samples, edges


# --- speaking ---


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
    generation = GenerationConfig(max_mel_tokens=48, num_beams=1)
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


# --- the picture ---


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


# --- emotion ---


def test_faders_are_moved_by_keys_and_sent(page: Page, served: Served) -> None:
    page.click(".segments label:nth-child(2)")
    page.run("document.getElementById('emotion-happy').focus()")
    for _ in range(12):
        page.press("ArrowUp")
    page.run("document.getElementById('emotion-sad').focus()")
    page.press("End")
    page.run("document.getElementById('strength').focus()")
    for _ in range(4):
        page.press("ArrowLeft")
    assert page.text("#strength-value") == "80 %"
    speak(page)
    emotion = last_job(served).request.emotion
    assert isinstance(emotion, EmotionVector)
    assert emotion.weights == pytest.approx(normalize_emotion_vector([0.6, 0, 1, 0, 0, 0, 0, 0]))
    assert emotion.alpha == pytest.approx(0.8)
    assert "sad, happy" in page.text("#history li")


def test_faders_are_weakened_as_the_library_does(page: Page) -> None:
    positions = [0.1, 0.05, 0.2, 0, 0.1, 0, 0.3, 0.05]
    for scale in (1, 3):
        scaled = [min(1.0, scale * position) for position in positions]
        weights = page.run(f"import('./emotion.js').then(({{ weightsOf }}) => weightsOf({scaled}))")
        assert weights == pytest.approx(normalize_emotion_vector(scaled))


def test_emotion_of_a_clip(page: Page, served: Served, tmp_path: Path) -> None:
    page.click(".segments label:nth-child(3)")
    write(page, TEXT)
    page.click("#speak")
    page.wait("!document.getElementById('error').hidden")
    assert "clip that has the emotion" in page.text("#error-text")
    (tmp_path / "sobbing.flac").write_bytes(voice_file(2.0, "FLAC"))
    page.choose_file("#emotion-clip [data-part=file]", tmp_path / "sobbing.flac")
    page.wait("!document.querySelector('#emotion-clip .clip-full').hidden")
    assert "2.0 s" in page.text("#emotion-clip")
    page.click("#speak")
    wait_until_done(page)
    emotion = last_job(served).request.emotion
    assert isinstance(emotion, EmotionAudio)
    assert len(emotion.audio.samples) == 2 * RATE
    assert page.run("document.getElementById('error').hidden")


# --- voices ---


def voice_seconds(served: Served) -> float:
    return served.engine.tts.voices[-1].seconds


def test_own_voice_from_a_file(page: Page, served: Served, tmp_path: Path) -> None:
    page.click(".own-tile")
    (tmp_path / "me.wav").write_bytes(voice_file(4.0))
    page.choose_file("#own-voice [data-part=file]", tmp_path / "me.wav")
    page.wait("!document.querySelector('#own-voice .clip-full').hidden")
    speak(page)
    assert voice_seconds(served) == pytest.approx(4.0)
    assert "own voice" in page.text("#history li")


def drop(page: Page, target: str, data: bytes, name: str) -> None:
    """Drop a file on an element."""
    page.run(
        f"""(() => {{
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from({json.dumps(list(data))})], {json.dumps(name)}));
            const options = {{ bubbles: true, cancelable: true, dataTransfer: transfer }};
            for (const kind of ["dragenter", "dragover", "drop"])
                document.querySelector({json.dumps(target)}).dispatchEvent(new DragEvent(kind, options));
        }})()"""
    )


def test_dropped_files_become_voice_or_emotion(page: Page, served: Served) -> None:
    drop(page, "#text", voice_file(2.0), "dropped.wav")
    page.wait("document.querySelector('.own-tile input').checked")
    drop(page, "#emotion-card", voice_file(3.0), "mood.wav")
    page.wait("document.querySelector('[name=emotion][value=clip]').checked")
    page.wait("[...document.querySelectorAll('.clip-full')].every((pane) => !pane.hidden)")
    assert page.run("document.querySelectorAll('.dragging').length") == 0
    speak(page)
    assert voice_seconds(served) == pytest.approx(2.0)
    assert isinstance(last_job(served).request.emotion, EmotionAudio)


def test_files_that_cannot_be_voices_are_explained(page: Page) -> None:
    drop(page, "#text", b"\x89PNG not a sound", "picture.png")
    page.wait("document.querySelector('#own-voice [data-part=note]').textContent.includes('no sound')")
    drop(page, "#text", voice_file(0.5), "short.wav")
    page.wait("document.querySelector('#own-voice [data-part=note]').textContent.includes('0.5 s')")
    drop(page, "#text", voice_file(40.0, "FLAC"), "long.flac")
    page.wait("document.querySelector('#own-voice [data-part=note]').textContent.includes('first 15 seconds')")
    assert "15.0 s" in page.text("#own-voice")


def test_own_voice_from_the_microphone(page: Page, served: Served) -> None:
    page.click(".own-tile")
    page.click("#own-voice [data-part=record]")
    page.wait("document.querySelector('#own-voice meter').value > 0.3", 30)
    page.wait("parseFloat(document.querySelector('#own-voice [data-part=seconds]').textContent) > 1.8")
    page.click("#own-voice [data-part=stop]")
    page.wait("!document.querySelector('#own-voice .clip-full').hidden")
    speak(page)
    assert 1.0 < voice_seconds(served) < 6.0


def test_a_voice_is_kept_with_consent_and_deleted(page: Page, served: Served, tmp_path: Path) -> None:
    page.click(".own-tile")
    (tmp_path / "me.wav").write_bytes(voice_file(2.0))
    page.choose_file("#own-voice [data-part=file]", tmp_path / "me.wav")
    page.wait("!document.getElementById('keep').hidden")
    page.click("#keep summary")
    page.click("#keep-name")
    page.type("carol")
    page.click("#keep-save")
    page.wait("!document.getElementById('error').hidden")
    assert "consent" in page.text("#error-text")
    page.click("#keep-consent")
    page.click("#keep-save")
    page.wait("document.querySelector('.tile:has(:checked)').textContent.includes('carol')")
    (kept,) = [v for v in httpx.get(f"{served.url}v1/audio/voices").json()["uploaded_voices"] if v["name"] == "carol"]
    assert "agrees" in kept["consent"]

    page.click('[aria-label="Delete the voice carol"]')
    page.click("#ask-dialog [value=yes]")
    page.wait("!document.getElementById('voices').textContent.includes('carol')")
    assert "carol" not in httpx.get(f"{served.url}v1/audio/voices").text


# --- downloads and history ---


def downloaded(browser: Browser, page: Page, file_format: str) -> bytes:
    """Press a download button and return the file."""
    file = browser.downloads / f"hello-this-is-a-page.{file_format}"
    file.unlink(missing_ok=True)
    page.click(f'[data-format="{file_format}"]')
    deadline = time.monotonic() + 20
    while not file.exists():
        assert time.monotonic() < deadline, f"no {file.name} in {list(browser.downloads.iterdir())}"
        time.sleep(0.05)
    page.wait(f"document.getElementById('status').textContent === 'Saved {file.name}.'")
    return file.read_bytes()


def test_downloads_hold_the_same_speech(browser: Browser, page: Page, served: Served) -> None:
    speak(page)
    samples = expected(last_job(served))
    assert downloaded(browser, page, "pcm") == samples.astype("<i2").tobytes()
    for name in ("wav", "flac"):
        found, rate = soundfile.read(io.BytesIO(downloaded(browser, page, name)), dtype="int16")
        assert rate == RATE
        assert np.array_equal(found, samples), name
    for name in ("mp3", "opus"):
        found, rate = soundfile.read(io.BytesIO(downloaded(browser, page, name)))
        assert len(found) / rate == pytest.approx(len(samples) / RATE, abs=0.15)
        assert np.sqrt(np.mean(found**2)) > 0.05
    assert {job.request.config.seed for job in served.engine.jobs} == {last_job(served).request.config.seed}


def test_the_file_made_in_the_page_says_that_it_is_synthetic(browser: Browser, page: Page) -> None:
    speak(page)
    with soundfile.SoundFile(io.BytesIO(downloaded(browser, page, "wav"))) as file:
        assert "synthetic speech; seed" in file.comment
        assert file.title == "Synthetic speech"


def test_history_plays_and_restores(page: Page, served: Served) -> None:
    page.click(".segments label:nth-child(2)")
    page.run("document.getElementById('emotion-angry').focus()")
    page.press("End")
    choose_voice(page, "bob")
    speak(page, "The first text.")
    page.click(".segments label:nth-child(1)")
    choose_voice(page, "alice")
    speak(page, "The second text, a longer one.", entries=2)
    assert [page.text(f"#history li:nth-child({i}) .said") for i in (1, 2)] == [
        "The second text, a longer one.",
        "The first text.",
    ]
    page.click("#history li:nth-child(2) .open-entry")
    assert page.text("#seed-use") == str(served.engine.jobs[0].request.config.seed)
    assert page.run("document.querySelector('#history li:nth-child(2)').getAttribute('aria-current')") == "true"
    page.wait("document.getElementById('stage').dataset.state === 'ended'")
    page.click("#history li:nth-child(2) .link")
    assert page.run("document.getElementById('text').value") == "The first text."
    assert page.run("document.querySelector('[name=emotion]:checked').value") == "mix"
    assert page.run("document.getElementById('emotion-angry').value") == "1"
    assert page.run("document.querySelector('[name=voice]:checked').value") == "bob"
    page.click("#history-clear")
    assert page.run("document.querySelectorAll('#history li').length") == 1


# --- errors and keys ---


def test_errors_of_the_server_are_shown(page: Page) -> None:
    write(page, "unspeakable")
    page.click("#speak")
    page.wait("!document.getElementById('error').hidden")
    assert page.text("#error-text") == "Nothing of this text can be spoken; send words"
    assert re.search(r"400 · invalid_text · request \w+", page.text("#error-fine"))
    assert page.run("document.getElementById('text').getAttribute('aria-invalid')") == "true"
    assert all("400" in problem for problem in page.problems)
    page.problems.clear()
    speak(page)
    assert page.run("document.getElementById('error').hidden")


@pytest.mark.parametrize(
    ("text", "message"), [("", "Type something"), ("  \n ", "Type something"), ("x" * 4097, "4097")]
)
def test_mistakes_are_told_without_asking_the_server(page: Page, served: Served, text: str, message: str) -> None:
    page.run(f"document.getElementById('text').value = {json.dumps(text)}")
    page.press("Enter", CONTROL)
    page.wait("!document.getElementById('error').hidden")
    assert message in page.text("#error-text")
    assert page.run("document.activeElement.id") == "text"
    assert not served.engine.jobs


def test_a_server_that_is_gone_is_told(browser: Browser, start_server: Callable[..., Served]) -> None:
    gone = start_server()
    add_voice(gone.url, "alice")
    with browser.page(gone.url) as page:
        gone.stop()
        write(page, TEXT)
        page.click("#speak")
        page.wait("!document.getElementById('error').hidden")
        assert "cannot be reached" in page.text("#error-text")


def test_the_key_is_asked_for_and_kept_for_the_session_only(
    browser: Browser, start_server: Callable[..., Served]
) -> None:
    served = start_server(api_keys=(KEY,))
    add_voice(served.url, "alice", {"Authorization": f"Bearer {KEY}"})
    with browser.page(served.url) as page:
        page.wait("document.getElementById('key-dialog').open")
        assert page.text("#server-text") == "Needs a key"
        page.click("#key")
        page.type("a-wrong-key")
        page.press("Enter")
        page.wait("document.getElementById('server').dataset.state === 'key'")
        page.wait("document.getElementById('key-dialog').open")
        page.run("document.getElementById('key').select()")
        page.type(KEY)
        page.click("#key-save")
        page.wait("document.getElementById('server').dataset.state === 'ready'")
        speak(page)
        assert page.run("Object.values(sessionStorage)") == [KEY]
        assert KEY not in page.run("JSON.stringify(localStorage) + document.cookie + document.body.outerHTML")
        assert not any(KEY in url for url in page.requests)
        page.click("#open-key")
        page.wait("document.getElementById('key-dialog').open")
        page.click("#key-forget")
        page.wait("document.getElementById('server').dataset.state === 'key'")
        assert page.run("sessionStorage.length") == 0


# --- for everybody ---


def test_everything_that_can_be_used_has_a_name(page: Page) -> None:
    speak(page)
    page.click(".segments label:nth-child(2)")
    page.run("document.getElementById('more').open = true")
    roles = {
        "button",
        "textbox",
        "slider",
        "radio",
        "checkbox",
        "combobox",
        "DisclosureTriangle",
        "meter",
        "radiogroup",
    }
    nodes = page.send("Accessibility.getFullAXTree")["nodes"]
    used = [node for node in nodes if not node["ignored"] and node["role"]["value"] in roles]
    assert len(used) > 30
    nameless = [node["role"]["value"] for node in used if not node.get("name", {}).get("value", "").strip()]
    assert nameless == []
    names = {node["name"]["value"] for node in used}
    assert {"Text", "happy", "melancholic", "alice", "Your own", "Position in the speech", "Download as Opus"} <= names
    assert page.run("document.documentElement.lang") == "en"


def test_it_can_be_used_by_keys_alone(page: Page, served: Served) -> None:
    page.run("document.body.focus()")
    reached = []
    for _ in range(40):
        page.press("Tab")
        reached.append(page.run("document.activeElement.id || document.activeElement.name"))
    for name in ("theme", "open-key", "open-help", "text", "voice", "emotion", "speak", "picture"):
        assert name in reached, f"{name} is not reached by Tab: {reached}"
    page.run("document.body.focus(); document.activeElement.blur()")
    page.press("?")
    page.wait("document.getElementById('help-dialog').open")
    page.press("Escape")
    page.wait("!document.getElementById('help-dialog').open")
    write(page, TEXT)
    page.press("Enter", CONTROL)
    wait_until_done(page)
    assert last_job(served).request.text == TEXT


def test_light_and_dark(page: Page) -> None:
    def paper() -> str:
        return str(page.run("getComputedStyle(document.body).backgroundColor"))

    page.look(1280, 800)
    light = paper()
    page.look(1280, 800, dark=True)
    dark = paper()
    assert [sum(map(int, re.findall(r"\d+", colour))) > 380 for colour in (light, dark)] == [True, False]
    page.click("#theme")
    assert paper() == light
    assert page.run("document.getElementById('theme').getAttribute('aria-label')") == "Theme: light"
    page.send("Page.reload")
    page.wait("document.documentElement?.dataset.theme === 'light' && document.readyState === 'complete'")
    assert paper() == light
    page.wait("document.getElementById('server')?.dataset.state === 'ready'")
    page.click("#theme")
    assert page.run("document.getElementById('theme').getAttribute('aria-label')") == "Theme: dark"
    page.click("#theme")
    assert page.run("localStorage.length") == 0
    assert paper() == dark


@pytest.mark.parametrize("width", [1280, 768, 390, 340])
def test_nothing_sticks_out(page: Page, width: int) -> None:
    page.look(width, 800, phone=width < 500)
    speak(page, "Awordthatislongerthananywordshouldbe" * 3 + " in a short text.")
    page.click(".segments label:nth-child(2)")
    assert page.run("document.documentElement.scrollWidth") <= width
    assert len(set(page.screenshot())) > 100


def test_only_the_server_is_asked_and_foreign_scripts_do_not_run(page: Page, served: Served) -> None:
    speak(page)
    assert page.requests
    assert all(url.startswith((served.url, "blob:", "data:")) for url in page.requests)
    page.run(
        """(() => {
            const inline = document.createElement("script");
            inline.textContent = "window.intruder = 1";
            const image = new Image();
            image.src = "http://192.0.2.1/spy.png";
            document.body.append(inline, image);
            document.body.insertAdjacentHTML("beforeend", "<b onclick='window.intruder = 1'>x</b>");
            document.body.lastChild.click();
        })()"""
    )
    assert page.run("window.intruder === undefined")
    page.run("new Promise((resolve) => setTimeout(resolve, 200))")
    assert any("policy" in problem.lower() for problem in page.problems)
    assert page.blocked == ["http://192.0.2.1/spy.png"]
    page.problems.clear()


def test_headers_of_the_page(served: Served) -> None:
    for path in ("", "app.js"):
        headers = httpx.get(served.url + path).headers
        assert "script-src 'self'" in headers["content-security-policy"]
        assert "frame-ancestors 'none'" in headers["content-security-policy"]
        assert headers["cache-control"] == "no-cache"
        assert headers["x-content-type-options"] == "nosniff"


def test_markup_has_no_inline_code() -> None:
    markup = (PAGE / "index.html").read_text()
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in markup
    assert "unsafe" not in markup
    assert not re.search(r"\son\w+\s*=|\sstyle\s*=|javascript:|<style", markup)
    assert re.findall(r"<script(?![^>]*\ssrc=)", markup) == []
    for file in PAGE.iterdir():
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", file.read_text()), (
            f"{file.name} names a foreign address"
        )
