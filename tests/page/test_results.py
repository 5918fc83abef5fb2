"""Downloads, history, errors and the key."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable

import numpy as np
import pytest
import soundfile

from tests.page.chromium import CONTROL, Browser, Page
from tests.page.conftest import KEY, Served, add_voice
from tests.page.steps import (
    TEXT,
    choose_voice,
    downloaded,
    expected,
    last_job,
    speak,
    write,
)
from tests.page.tone_engine import RATE

pytestmark = pytest.mark.page


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


def test_aac_is_offered_where_the_server_has_it(
    browser: Browser, page: Page, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason="needs the extra `aac`")
    speak(page)
    with av.open(io.BytesIO(downloaded(browser, page, "aac"))) as file:
        frames = [frame.to_ndarray() for frame in file.decode(audio=0)]
    sound = np.concatenate(frames, axis=-1)
    assert sound.shape[-1] / RATE == pytest.approx(len(expected(last_job(served))) / RATE, abs=0.15)
    assert np.sqrt(np.mean(sound**2)) > 0.05
    monkeypatch.setattr("indextts2.server.encoders.find_spec", lambda _: None)
    with browser.page(served.url) as other:
        other.wait("document.getElementById('server').dataset.state === 'ready'")
        shown = other.run(
            "[...document.querySelectorAll('#downloads button:not([hidden])')].map((b) => b.dataset.format)"
        )
        assert shown == ["wav", "flac", "mp3", "opus", "pcm"]


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
