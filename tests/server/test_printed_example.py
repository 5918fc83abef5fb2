"""The example of the server that README.md and docs/server.md print, run as printed, with the embedded voice."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from indextts2.audio.loader import load_audio
from tests.server.fakes import wait_until
from tests.server.test_process import START_SECONDS, free_port

ROOT = Path(__file__).parents[2]
PRINTED_URL = "http://127.0.0.1:8000"
PAGES = ("README.md", "docs/server.md")


def server_section(page: str) -> str:
    """The page from the first line that starts a server."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text[text.index("indextts2 serve") :]


def server_command(page: str) -> list[str]:
    return shlex.split(server_section(page).splitlines()[0], comments=True)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server started as README.md says, in a folder that holds nothing."""
    folder = tmp_path_factory.mktemp("empty")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    program, *arguments = server_command("README.md")
    assert program == "indextts2"
    environment = {name: value for name, value in os.environ.items() if name != "INDEXTTS2_API_KEY"}
    process = subprocess.Popen(
        [sys.executable, "-m", "indextts2", *arguments, "--port", str(port), "--voices-dir", str(folder / "voices")],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},  # several threads are slow while the machine does other things
        stderr=subprocess.DEVNULL,
    )

    def is_ready() -> bool:
        assert process.poll() is None, f"{shlex.join(server_command('README.md'))} ended with {process.returncode}"
        try:
            return httpx.get(f"{url}/readyz").status_code == 200
        except httpx.TransportError:
            return False

    try:
        wait_until(is_ready, START_SECONDS)
        yield url
    finally:
        process.terminate()
        process.wait(30)


def test_both_pages_start_the_same_server() -> None:
    assert server_command("docs/server.md") == server_command("README.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_printed_example_speaks(page: str, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = server_section(page).partition("```python\n")[2].partition("```")[0]
    assert PRINTED_URL in code
    assert re.search(r"import OpenAI +# pip install openai", code), "the extra `server` does not bring the client"
    exec(code.replace(PRINTED_URL, url), {})
    speech = load_audio(tmp_path / "hello.mp3")
    assert speech.duration > 0.5
    assert np.sqrt(np.mean(speech.samples**2)) > 0.01, "silence"
