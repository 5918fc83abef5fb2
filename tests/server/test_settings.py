"""What may be set: the server is closed by default and says so before it starts."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from indextts2.cli import serve
from indextts2.errors import UsageError
from indextts2.server.settings import ServerSettings, is_loopback, keys_from_environment

KEY = "a-long-secret"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST"])
def test_loopback_needs_no_key(host: str) -> None:
    assert is_loopback(host)
    assert ServerSettings(host=host).checks_host


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", "", "127.0.0.1.evil.org"])
def test_other_addresses_need_a_key_or_a_word(host: str) -> None:
    with pytest.raises(UsageError, match="API key"):
        ServerSettings(host=host)
    assert not ServerSettings(host=host, api_keys=(KEY,)).checks_host
    assert not ServerSettings(host=host, allow_public_without_key=True).checks_host


def test_wyoming_knows_no_keys() -> None:
    with pytest.raises(UsageError, match="Wyoming"):
        ServerSettings(host="0.0.0.0", api_keys=(KEY,), wyoming_port=10200)
    assert ServerSettings(host="0.0.0.0", api_keys=(KEY,), wyoming_port=10200, wyoming_host="127.0.0.1")


@pytest.mark.parametrize(
    "change",
    [
        {"max_running": 0},
        {"preset": "turbo"},
        {"max_waiting": -1},
        {"lanes": 0},
        {"queue_seconds": 0.0},
        {"queue_seconds": float("nan")},
        {"idle_unload_seconds": -1.0},
        {"port": 70_000},
        {"api_keys": ("short",)},
        {"api_keys": ("with space inside",)},
        {"allowed_origins": ("*",)},
        {"allowed_origins": ("example.org",)},
    ],
    ids=str,
)
def test_values_out_of_range(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        ServerSettings(**change)


def test_keys_are_not_shown() -> None:
    assert KEY not in repr(ServerSettings(api_keys=(KEY,)))


def test_keys_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEXTTS2_API_KEY", f"{KEY}, {KEY}2,")
    assert keys_from_environment() == (KEY, f"{KEY}2")
    assert options().api_keys == (KEY, f"{KEY}2")
    assert options("--api-key", "another-key").api_keys == ("another-key",)


def options(*words: str) -> ServerSettings:
    parser = argparse.ArgumentParser()
    serve.add_options(parser)
    return serve.server_settings(parser.parse_args(words))


def test_options_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INDEXTTS2_API_KEY", raising=False)
    plain = options()
    assert (plain.host, plain.port, plain.max_running, plain.idle_unload_seconds) == ("127.0.0.1", 8000, 4, None)
    assert plain.lanes is None
    full = options("--voices-dir", str(tmp_path), "--voice-alias", "alloy=alice", "--idle-unload", "60", "--no-page",
                   "--wyoming-port", "10200", "--max-waiting", "3", "--lanes", "2", "--preset", "fast",
                   "--allowed-origin", "https://a.org")  # fmt: skip
    assert full.voices_directory == tmp_path
    assert full.voice_aliases == {"alloy": "alice"}
    assert (full.idle_unload_seconds, full.serve_page, full.wyoming_port, full.max_waiting) == (60.0, False, 10200, 3)
    assert full.lanes == 2
    assert (plain.preset, full.preset) == ("exact", "fast")
    with pytest.raises(UsageError, match="alias"):
        options("--voice-alias", "alloy")
    with pytest.raises(UsageError, match="can be reached by others"):
        options("--host", "0.0.0.0")
