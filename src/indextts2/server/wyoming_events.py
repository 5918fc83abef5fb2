"""Events of the Wyoming protocol: one line of JSON, then `data_length` bytes of JSON, then `payload_length` raw bytes.

Own code instead of the `wyoming` package, because that reads whatever length a peer announces.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from indextts2.errors import UsageError

PROTOCOL_VERSION = "1.9.0"
MAX_LINE_BYTES = 65_536
MAX_DATA_BYTES = 262_144
MAX_PAYLOAD_BYTES = 1_048_576


@dataclass(frozen=True)
class Event:
    """One message: its type, its fields and raw bytes (audio)."""

    type: str
    data: Mapping[str, Any] = field(default_factory=dict)
    payload: bytes = b""

    def to_bytes(self) -> bytes:
        """The event as it goes over the wire."""
        header: dict[str, Any] = {"type": self.type, "version": PROTOCOL_VERSION}
        data = json.dumps(self.data, ensure_ascii=False).encode() if self.data else b""
        if data:
            header["data_length"] = len(data)
        if self.payload:
            header["payload_length"] = len(self.payload)
        return json.dumps(header).encode() + b"\n" + data + self.payload


async def read_event(reader: asyncio.StreamReader) -> Event | None:
    """The next event, or None at the end of the stream. `reader` must have been made with `limit=MAX_LINE_BYTES`.

    Raises:
        UsageError: the bytes are no event, or it is larger than the limits of this module.
    """
    try:
        line = await reader.readline()
    except ValueError:
        raise UsageError(f"the line of an event is longer than {MAX_LINE_BYTES} bytes; put text into data") from None
    if not line.endswith(b"\n"):
        return None
    header = _json_object(line, "the line of an event")
    kind = header.get("type")
    if not isinstance(kind, str):
        raise UsageError(f"an event needs a type, not {kind!r}")
    data = header.get("data") or {}
    if not isinstance(data, dict):
        raise UsageError(f"the data of an event must be a JSON object, not {type(data).__name__}")
    try:
        extra = await reader.readexactly(_length(header, "data_length", MAX_DATA_BYTES))
        payload = await reader.readexactly(_length(header, "payload_length", MAX_PAYLOAD_BYTES))
    except asyncio.IncompleteReadError:
        return None
    return Event(kind, data | _json_object(extra, "the data of an event") if extra else data, payload)


def _length(header: Mapping[str, Any], name: str, limit: int) -> int:
    value = header.get(name) or 0
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        raise UsageError(f"{name} must be a whole number in 0..{limit}, not {value!r}")
    return value


def _json_object(data: bytes, what: str) -> dict[str, Any]:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{what} must be a JSON object, not {type(value).__name__}")
    return value
