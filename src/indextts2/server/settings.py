"""Everything that can be set about the server, checked before it starts."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from indextts2.errors import UsageError
from indextts2.presets import PRESETS

API_KEY_VARIABLE = "INDEXTTS2_API_KEY"
MIB = 2**20
MIN_KEY_CHARACTERS = 8


def default_voices_directory() -> Path:
    """Where uploaded voices are kept unless told: the user's data directory."""
    root = os.environ.get("XDG_DATA_HOME") or "~/.local/share"
    return Path(root).expanduser() / "indextts2" / "voices"


def keys_from_environment() -> tuple[str, ...]:
    """The API keys in `INDEXTTS2_API_KEY`, separated by commas."""
    return tuple(key.strip() for key in os.environ.get(API_KEY_VARIABLE, "").split(",") if key.strip())


@dataclass(frozen=True)
class ServerSettings:
    """What `indextts2 serve` can be told. Sizes in bytes, times in seconds.

    Args:
        api_keys: any of them opens `/v1`; none leaves it open, which only a loopback address may be.
        allow_public_without_key: serve without a key on an address that others can reach.
        allowed_origins: web pages of these origins may call the server from a browser; none by default.
        allowed_hosts: further values of the Host header that are served on a loopback address without a key.
        model_name: the name of the model in requests; `model_aliases` are accepted for it.
        voice_aliases: further names of voices, for clients that cannot choose other ones.
        preset: of requests that name none.
        max_running: requests that are spoken at the same time; `max_waiting` more may wait, the next gets 429.
        lanes: pieces of work that the engine computes at a time, see `SpeechEngine`.
        queue_seconds: a request that has waited so long for its turn gets 503.
        idle_unload_seconds: let go of the model after so long without a request; None keeps it.
        allow_remote_audio: reference audio may be an http or https address of a public host.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_public_without_key: bool = False
    allowed_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    model_name: str = "indextts2"
    model_aliases: tuple[str, ...] = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")
    voices_directory: Path = field(default_factory=default_voices_directory)
    voice_aliases: Mapping[str, str] = field(default_factory=dict)
    max_voices: int = 100
    preset: str = "exact"
    max_running: int = 4
    max_waiting: int = 16
    lanes: int | None = None
    queue_seconds: float = 60.0
    shutdown_seconds: float = 30.0
    idle_unload_seconds: float | None = None
    max_json_bytes: int = 16 * MIB
    max_upload_bytes: int = 10 * MIB
    max_reference_seconds: float = 30.0
    decode_seconds: float = 20.0
    body_seconds: float = 30.0
    send_seconds: float = 30.0
    websocket_config_seconds: float = 10.0
    websocket_idle_seconds: float = 30.0
    allow_remote_audio: bool = False
    serve_page: bool = True
    wyoming_port: int | None = None
    wyoming_host: str | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        self._check_preset()
        self._check_keys()
        for origin in self.allowed_origins:
            if not re.fullmatch(r"https?://[^/\s*]+", origin):
                raise UsageError(f"an allowed origin looks like https://example.org, not {origin!r}")
        public = [host for host in (self.host, self.wyoming_address) if not is_loopback(host)]
        if public and not self.api_keys and not self.allow_public_without_key:
            raise UsageError(
                f"{public[0]} can be reached by others and no API key is set; set {API_KEY_VARIABLE} or --api-key, "
                "or say --allow-public-without-key"
            )
        if (
            self.wyoming_port is not None
            and not is_loopback(self.wyoming_address)
            and not self.allow_public_without_key
        ):
            raise UsageError(
                "the Wyoming protocol knows no keys: bind it to a loopback address with --wyoming-host 127.0.0.1, "
                "or say --allow-public-without-key"
            )

    @property
    def wyoming_address(self) -> str:
        """Where the Wyoming protocol is served: beside HTTP unless told."""
        return self.host if self.wyoming_host is None else self.wyoming_host

    @property
    def checks_host(self) -> bool:
        """Whether only known Host headers are served: a page in a browser could otherwise reach an open server."""
        return is_loopback(self.host) and not self.api_keys

    def _check_numbers(self) -> None:
        whole = {"max_running": 1, "max_waiting": 0, "max_voices": 0, "max_json_bytes": 1, "max_upload_bytes": 1}
        for name, least in whole.items():
            if getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.lanes is not None and self.lanes < 1:
            raise UsageError(f"lanes must be at least 1, not {self.lanes}")
        times = [name for name in self.__dataclass_fields__ if name.endswith("_seconds")]
        for name in times:
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e7:
                raise UsageError(f"{name} must be a number above 0, not {value!r}")
        for name in ("port", "wyoming_port"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1 << 16:
                raise UsageError(f"{name} must lie in 0..65535, not {value}")

    def _check_preset(self) -> None:
        if self.preset not in PRESETS:
            raise UsageError(f"preset must be one of {', '.join(PRESETS)}, not {self.preset!r}")

    def _check_keys(self) -> None:
        for key in self.api_keys:
            if len(key) < MIN_KEY_CHARACTERS or not key.isascii() or not key.isprintable() or " " in key:
                raise UsageError(
                    f"an API key has at least {MIN_KEY_CHARACTERS} printable ASCII characters without spaces; "
                    f"one of those given (of {len(key)} characters) does not"
                )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`."""
    name = host.strip("[]").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
