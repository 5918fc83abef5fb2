"""Audio from addresses: off by default; where it is on, only public addresses are reached (catalogue 26 to 33)."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from indextts2.audio.loader import AudioTooLongError
from indextts2.errors import AudioError, UsageError
from indextts2.server import remote
from tests.server.conftest import error_of, say, wav_bytes


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/a.wav",  # 26
        "http://[::1]/a.wav",
        "http://0x7f000001/a.wav",
        "http://2130706433/a.wav",
        "http://127.1/a.wav",
        "http://localhost/a.wav",
        "http://0.0.0.0/a.wav",
        "http://[::ffff:127.0.0.1]/a.wav",
        "http://[64:ff9b::7f00:1]/a.wav",
        "http://169.254.169.254/latest/meta-data",  # 27
        "http://10.0.0.1/a.wav",
        "http://[fd00::1]/a.wav",
        "http://[fe80::1]/a.wav",
        "http://224.0.0.1/a.wav",
        "file:///etc/passwd",  # 30
        "ftp://example.org/a.wav",
        "gopher://example.org/",
        "http://ok@evil.example/",  # 33
        "http://ok:pw@evil.example/",
        "http://ok\\@evil.example/",
        "http://127.0.0.1:22/",
        "http://93.184.216.34:6379/",
        "http:///a.wav",
        "http://[::1/a.wav",
        "http://example.org:99999/",
    ],
)
def test_addresses_that_are_not_fetched(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", lambda *_: pytest.fail("a connection was made"))
    with pytest.raises(UsageError):
        remote.fetch_audio(url, 1000)


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1:248:1893:25c8:1946"])
def test_public_addresses(address: str) -> None:
    assert remote.is_public(address)


def test_29_every_address_of_a_name_must_be_public(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [(0, 0, 0, "", (address, 80)) for address in ("93.184.216.34", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(UsageError, match="not a public address"):
        remote.public_address("rebind.example", 80)


def test_29_the_address_that_was_checked_is_the_one_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    lookups = iter([[(0, 0, 0, "", ("93.184.216.34", 80))], [(0, 0, 0, "", ("127.0.0.1", 80))]])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: next(lookups))
    reached = []

    def connect(address: tuple[str, int], *_: object) -> None:
        reached.append(address)
        raise ConnectionRefusedError("no network in tests")

    monkeypatch.setattr(socket, "create_connection", connect)
    with pytest.raises(AudioError, match="could not be read"):
        remote.fetch_audio("http://rebind.example/a.wav", 1000)
    assert reached == [("93.184.216.34", 80)]


class Handler(BaseHTTPRequestHandler):
    """Audio, redirects, endless bodies."""

    def do_GET(self) -> None:
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path[4:])
            self.end_headers()
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(b"x" * 10_000)
            except OSError:
                return
        elif self.path == "/a.wav":
            self.send_response(200)
            self.send_header("Content-Type", "audio/wav; codecs=1")
            self.end_headers()
            self.wfile.write(wav_bytes())
        else:
            self.send_error(404)

    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A web site that the fetcher takes for http://public.example."""
    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real = remote.public_address

    def lookup(host: str, port: int) -> str:
        return "127.0.0.1" if host == "public.example" else real(host, port)

    monkeypatch.setattr(remote, "public_address", lookup)
    monkeypatch.setitem(remote.PORTS, "http", server.server_port)
    yield
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("site")
def test_audio_is_fetched_through_redirects() -> None:
    assert remote.fetch_audio("http://public.example/a.wav", 10**6) == (wav_bytes(), "audio/wav")
    assert remote.fetch_audio("http://public.example/to?/a.wav", 10**6)[0] == wav_bytes()


@pytest.mark.usefixtures("site")
@pytest.mark.parametrize("target", ["http://127.0.0.1/a.wav", "file:///etc/passwd", "http://169.254.169.254/"])
def test_28_redirects_inside_are_not_followed(target: str) -> None:
    with pytest.raises(UsageError):
        remote.fetch_audio(f"http://public.example/to?{target}", 10**6)


@pytest.mark.usefixtures("site")
def test_32_bodies_and_redirects_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AudioTooLongError):
        remote.fetch_audio("http://public.example/endless", 100_000)
    monkeypatch.setattr(remote, "TOTAL_SECONDS", 0.2)
    with pytest.raises(AudioError, match=r"within 0\.2 s"):
        remote.fetch_audio("http://public.example/endless", 10**12)
    with pytest.raises(AudioError, match="redirects more than"):
        remote.fetch_audio("http://public.example/to?/to?/to?/to?/to?/a.wav", 10**6)
    with pytest.raises(AudioError, match="status 404"):
        remote.fetch_audio("http://public.example/none", 10**6)


@pytest.mark.usefixtures("site")
def test_the_switch(make_client: Callable[..., Any]) -> None:
    url = "http://public.example/a.wav"
    assert error_of(say(make_client(), ref_audio=url))["param"] == "ref_audio"
    open_client = make_client(allow_remote_audio=True)
    assert say(open_client, ref_audio=url).status_code == 200
    for inside in ("http://127.0.0.1/a.wav", "file:///etc/passwd", "http://ok@evil.example/"):
        assert error_of(say(open_client, ref_audio=inside))["param"] == "ref_audio"
