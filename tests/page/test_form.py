"""Emotions and voices, chosen in the page."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from indextts2.inference.emotion import EmotionAudio, EmotionVector
from indextts2.models.emotion.vector import normalize_emotion_vector
from tests.page.chromium import Page
from tests.page.conftest import Served, voice_file
from tests.page.steps import (
    TEXT,
    drop,
    last_job,
    speak,
    voice_seconds,
    wait_until_done,
    write,
)
from tests.page.tone_engine import RATE

pytestmark = pytest.mark.page


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


def test_own_voice_from_a_file(page: Page, served: Served, tmp_path: Path) -> None:
    page.click(".own-tile")
    (tmp_path / "me.wav").write_bytes(voice_file(4.0))
    page.choose_file("#own-voice [data-part=file]", tmp_path / "me.wav")
    page.wait("!document.querySelector('#own-voice .clip-full').hidden")
    speak(page)
    assert voice_seconds(served) == pytest.approx(4.0)
    assert "own voice" in page.text("#history li")


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
