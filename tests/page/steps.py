"""What a person does with the page, and what can be seen and heard of it."""

from __future__ import annotations

import json
import time

import numpy as np

from indextts2.audio.formats import pcm16
from tests.page.chromium import Browser, Page
from tests.page.conftest import Served
from tests.page.tone_engine import HumJob, hum

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


def voice_seconds(served: Served) -> float:
    return served.engine.tts.voices[-1].seconds


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
