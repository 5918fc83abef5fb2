"""Reference audio that comes from outside: bounded, decoded in another process, and checked."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import json
import logging
import math
import re
import sys
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np

from indextts2.audio.loader import AudioTooLongError, check_reference
from indextts2.errors import AudioError, UsageError
from indextts2.server.remote import fetch_audio
from indextts2.server.settings import MIB, ServerSettings
from indextts2.types import Waveform

log = logging.getLogger(__name__)

# Decoding stops here. A clip that is somewhat too long is told so; what unpacks to more than this is a bomb.
MAX_DECODED_SECONDS = 120.0
MAX_PROCESSES = 2
# Clips that were decoded last are kept, by the hash of their bytes: clients send the same voice again and again.
CACHE_SIZE = 8
CACHED_BYTES = 8 * MIB
AUDIO_TYPES = re.compile(r"(audio/[a-z0-9.+-]+|application/(ogg|octet-stream)|video/ogg)", re.IGNORECASE)
_DATA_URL = re.compile(r"data:(?P<type>[^;,]*)(?P<parameters>(;[^;,]*)*),", re.IGNORECASE)
_START_BYTES = 200


@dataclass(frozen=True)
class EncodedAudio:
    """A file as it came, and the media type that it was said to be."""

    data: bytes
    media_type: str


class AudioIntake:
    """Turns untrusted bytes into a Waveform that can serve as a reference."""

    def __init__(self, settings: ServerSettings) -> None:
        self.settings = settings
        self._processes = asyncio.Semaphore(MAX_PROCESSES)
        self._decoded: OrderedDict[bytes, Waveform] = OrderedDict()

    async def from_url(self, url: str) -> EncodedAudio:
        """The bytes of a `data:` URL, or of an http address where that is allowed.

        Raises:
            AudioError, UsageError: not base64, not audio, too large, or an address that is not fetched.
        """
        scheme = url.partition(":")[0].lower()
        if scheme == "data":
            return parse_data_url(url, self.settings.max_upload_bytes)
        if scheme in ("http", "https") and self.settings.allow_remote_audio:
            found = await asyncio.to_thread(fetch_audio, url, self.settings.max_upload_bytes)
            return EncodedAudio(*found)
        seen = f"{scheme[:20]!r} addresses" if ":" in url[:20] else "plain text"
        remote = ", an http or https address" if self.settings.allow_remote_audio else ""
        raise UsageError(f"audio is sent as a data: URL with base64{remote}; {seen} are not read")

    async def decode(self, audio: EncodedAudio) -> Waveform:
        """Decode and check a reference clip; clips of equal bytes are decoded once.

        Raises:
            AudioTooLongError: it unpacks to far more than is allowed, or has too many bytes.
            AudioError: it cannot be decoded, or is no usable reference.
        """
        if len(audio.data) > self.settings.max_upload_bytes:
            raise AudioTooLongError(_too_large(self.settings.max_upload_bytes))
        key = hashlib.sha256(audio.data).digest()
        waveform = self._decoded.pop(key, None)
        if waveform is None:
            async with self._processes:
                waveform = await self._decode(audio.data)
            self._check(waveform)
        if waveform.samples.nbytes <= CACHED_BYTES:
            self._decoded[key] = waveform
        if len(self._decoded) > CACHE_SIZE:
            self._decoded.popitem(last=False)
        return waveform

    def _check(self, waveform: Waveform) -> None:
        if waveform.duration > self.settings.max_reference_seconds:
            raise AudioError(
                f"the audio lasts {waveform.duration:.1f} s; at most {self.settings.max_reference_seconds:g} s are "
                "accepted; cut it"
            )
        check_reference(waveform)

    async def _decode(self, data: bytes) -> Waveform:
        seconds = self.settings.decode_seconds
        command = ["-m", "indextts2.server.decoding", str(MAX_DECODED_SECONDS), str(math.ceil(seconds))]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(data), seconds)
        except TimeoutError:
            raise AudioError(f"the audio could not be decoded within {seconds:g} s; send a plain WAV file") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode != 0:
            log.warning("the audio decoder ended with status %s on %d bytes", process.returncode, len(data))
            raise AudioError("the audio made the decoder fail; it is damaged: record or export it again")
        return _read_answer(output)


def parse_data_url(url: str, max_bytes: int) -> EncodedAudio:
    """Read `data:audio/...;base64,...`.

    Raises:
        AudioError: it is not base64, of another media type or empty. AudioTooLongError: it is too large.
    """
    match = _DATA_URL.match(url[:_START_BYTES])
    if match is None or ";base64" not in match["parameters"].lower():
        raise AudioError("audio in a data: URL looks like data:audio/wav;base64,UklGR…")
    media_type = match["type"].lower()
    if not AUDIO_TYPES.fullmatch(media_type):
        raise AudioError(f"the data: URL says it is {media_type[:60]!r}; only audio is read")
    if (len(url) - match.end()) * 3 // 4 > max_bytes + 2:
        raise AudioTooLongError(_too_large(max_bytes))
    try:
        return EncodedAudio(base64.b64decode(url[match.end() :], validate=True), media_type)
    except (binascii.Error, ValueError) as error:
        raise AudioError(f"the data: URL is not valid base64 ({error})") from None


def _too_large(max_bytes: int) -> str:
    return f"the audio has more than {max_bytes} bytes, which is the limit; cut it or send MP3, Opus or FLAC"


def _read_answer(output: bytes) -> Waveform:
    line, _, samples = output.partition(b"\n")
    answer = json.loads(line)
    if "error" in answer:
        kind = AudioTooLongError if answer["error"] == "too_long" else AudioError
        raise kind(answer["message"])
    return Waveform(np.frombuffer(samples, "<f4", answer["samples"]).astype(np.float32), answer["sample_rate"])
