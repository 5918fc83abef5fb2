"""Names for screen readers, keys, themes, narrow windows, and what the page may not do."""

from __future__ import annotations

import re

import httpx
import pytest

from indextts2.server.app import PAGE
from tests.page.chromium import CONTROL, Page
from tests.page.conftest import Served
from tests.page.steps import (
    TEXT,
    last_job,
    speak,
    wait_until_done,
    write,
)

pytestmark = pytest.mark.page


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
