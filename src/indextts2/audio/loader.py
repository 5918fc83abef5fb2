"""Reading audio from files, bytes and streams, and the check that a clip can serve as a reference."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from indextts2.audio.containers import (
    CONVERT,
    check_format,
    check_ogg_end,
    check_wav,
    container_of,
    mp3_announces_length,
)
from indextts2.errors import AudioError
from indextts2.types import Waveform

logger = logging.getLogger(__name__)

AudioSource = str | Path | bytes | BinaryIO | Waveform

BLOCK_FRAMES = 65_536
MAX_SECONDS = 600.0
# A stream that cannot seek is kept in memory whole, so its size is capped too.
MAX_STREAM_BYTES = 256 * 2**20
MAX_DECODED_BYTES = 512 * 2**20

REFERENCE_SECONDS = 15.0
MIN_REFERENCE_SECONDS = 1.0
# Kept beyond the 15 s, so that cutting before resampling gives the samples that cutting after it would give.
MARGIN_SECONDS = 1.0
# Half the peak-to-peak range below which a clip counts as silent: -60 dB of full scale.
SILENCE_PEAK = 1e-3
# Float files may exceed full scale a little; 24 dB above it means integers that were never scaled, or garbage.
MAX_PEAK = 16.0


class AudioTooLongError(AudioError):
    """The audio exceeds a limit on seconds or bytes (a server answers 413 rather than 400)."""


def load_audio(
    source: AudioSource, max_seconds: float | None = None, too_long: Literal["error", "cut"] = "error"
) -> Waveform:
    """Read audio as mono float32 at its own sample rate.

    Channels are averaged in float32 as librosa does. Decoding goes block by block and stops at `max_seconds`
    (600 s unless told) and at 512 MiB of samples, whatever the header says.

    Args:
        source: path, encoded bytes, binary stream, or a Waveform, which is only checked.
        max_seconds: the longest audio accepted.
        too_long: "error" raises AudioTooLongError beyond `max_seconds`; "cut" returns the first `max_seconds`.

    Raises:
        AudioError: unreadable, damaged or cut off, no samples, rate or channels out of range, NaN or infinity.
    """
    limit = MAX_SECONDS if max_seconds is None else max_seconds
    if not limit > 0:
        raise AudioError(f"max_seconds must be positive, not {max_seconds!r}")
    if isinstance(source, Waveform):
        _check_waveform(source)
        return _limit_seconds(source, limit, too_long)
    name = _name_of(source)
    if isinstance(source, (str, Path)):
        try:
            with Path(source).open("rb") as opened:
                return _read(_seekable(opened, name), name, limit, too_long)
        except OSError as error:
            raise AudioError(f"{name} cannot be opened: {error.strerror or error}; check the path") from error
    file = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
    return _read(_seekable(file, name), name, limit, too_long)


def load_reference(source: AudioSource) -> Waveform:
    """Read a reference clip: `load_audio` of its first seconds, then `check_reference`."""
    waveform = load_audio(source, max_seconds=REFERENCE_SECONDS + MARGIN_SECONDS, too_long="cut")
    return check_reference(waveform, _name_of(source))


def check_reference(waveform: Waveform, name: str = "reference audio") -> Waveform:
    """Return `waveform` if a voice can be taken from it, or raise AudioError.

    It must be finite, neither silent nor far above full scale, and last at least 1 s. Only the first 15 s are ever
    used; longer audio is cut with a logged notice (to 16 s, see MARGIN_SECONDS; the features are cut exactly).
    """
    _check_waveform(waveform, name)
    if waveform.duration < MIN_REFERENCE_SECONDS:
        raise AudioError(
            f"{name} holds {waveform.duration:.2g} s of audio; at least {MIN_REFERENCE_SECONDS:g} s is needed"
        )
    if waveform.duration > REFERENCE_SECONDS:
        logger.info("%s is longer than %g s; only its first %g s are used", name, REFERENCE_SECONDS, REFERENCE_SECONDS)
    waveform = _limit_seconds(waveform, REFERENCE_SECONDS + MARGIN_SECONDS, "cut")
    heard = waveform.samples[: round(REFERENCE_SECONDS * waveform.sample_rate)]
    swing = float(heard.max()) / 2 - float(heard.min()) / 2
    if swing < SILENCE_PEAK:
        raise AudioError(f"{name} is silent (peak {swing:.2g} of full scale); use a clip with clear speech")
    peak = float(np.abs(heard).max())
    if peak > MAX_PEAK:
        raise AudioError(f"{name} has samples up to {peak:.3g}; scale them to [-1, 1]")
    return waveform


def _name_of(source: AudioSource) -> str:
    """What messages call the source: the file name, or the kind of the source."""
    if isinstance(source, (str, Path)):
        return Path(source).name or str(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"audio data of {len(source)} bytes"
    name = getattr(source, "name", None)
    return Path(name).name if isinstance(name, str) else "audio"


def _seekable(file: BinaryIO, name: str) -> BinaryIO:
    """The file itself, or what is left of it in memory when it cannot seek or does not stand at its start."""
    if file.seekable() and file.tell() == 0:
        return file
    data = file.read(MAX_STREAM_BYTES + 1)
    if len(data) > MAX_STREAM_BYTES:
        raise AudioTooLongError(f"{name} is larger than {MAX_STREAM_BYTES >> 20} MiB; send a shorter clip")
    return io.BytesIO(data)


def _read(file: BinaryIO, name: str, max_seconds: float, too_long: str) -> Waveform:
    container = container_of(file.read(16), name)
    if container == "WAV":
        check_wav(file, name)
    elif container == "OGG":
        check_ogg_end(file, name)
    file.seek(0)
    try:
        with _SequentialFile(file) as sound:
            check_format(sound.samplerate, sound.channels, name)
            exact_length = container != "MP3" or mp3_announces_length(file)
            samples = _decode(sound, name, max_seconds, too_long, exact_length)
            waveform = Waveform(samples, sound.samplerate)
    except soundfile.SoundFileError as error:
        reason = getattr(error, "error_string", None) or error
        raise AudioError(f"{name} cannot be decoded as {container} ({reason}); {CONVERT}") from error
    _check_waveform(waveform, name)
    return waveform


class _SequentialFile(soundfile.SoundFile):
    """A file that is only read onwards.

    soundfile seeks after every block, which fails at the end of FLAC streams of unknown length, and it reads no more
    of an MP3 than the bit rate of its first frames lets expect.
    """

    def seekable(self) -> bool:
        return False


def _decode(sound: soundfile.SoundFile, name: str, max_seconds: float, too_long: str, exact_length: bool) -> np.ndarray:
    """All samples of an open file as mono float32, within the limits; fewer than an exact length says is an error."""
    max_frames = int(max_seconds * sound.samplerate)
    if max_frames * 4 > MAX_DECODED_BYTES:
        max_frames = MAX_DECODED_BYTES // 4
        too_long = "error"
    blocks: list[np.ndarray] = []
    frames = 0
    while True:
        block = sound.read(BLOCK_FRAMES, dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block.mean(axis=1, dtype=np.float32))
        frames += len(block)
        if frames > max_frames:
            if too_long == "error":
                raise _too_long(name, max_frames / sound.samplerate)
            return np.concatenate(blocks)[:max_frames]
    # A file whose header leaves the length open announces 2**63 - 1 frames.
    if exact_length and frames < sound.frames < 1 << 60:
        raise AudioError(
            f"{name} is cut off: {sound.frames} samples are announced, {frames} could be decoded; "
            "copy or export it again"
        )
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)


def _too_long(name: str, limit_seconds: float) -> AudioTooLongError:
    return AudioTooLongError(f"{name} holds more than {limit_seconds:g} s of audio; cut it to at most that")


def _limit_seconds(waveform: Waveform, max_seconds: float, too_long: str) -> Waveform:
    max_samples = int(max_seconds * waveform.sample_rate)
    if len(waveform.samples) <= max_samples:
        return waveform
    if too_long == "error":
        raise _too_long("audio", max_seconds)
    return Waveform(waveform.samples[:max_samples], waveform.sample_rate)


def _check_waveform(waveform: Waveform, name: str = "audio") -> None:
    """Raise AudioError unless the samples are a non-empty vector of finite floats at a sensible rate."""
    samples = waveform.samples
    check_format(waveform.sample_rate, 1, name)
    if not isinstance(samples, np.ndarray) or samples.ndim != 1 or not np.issubdtype(samples.dtype, np.floating):
        seen = f"{getattr(samples, 'dtype', type(samples).__name__)} of shape {getattr(samples, 'shape', '?')}"
        raise AudioError(f"{name} has samples that are {seen}; a one-dimensional float array in [-1, 1] is needed")
    if not len(samples):
        raise AudioError(f"{name} holds no samples; record or export it again")
    bad = np.flatnonzero(~np.isfinite(samples))
    if len(bad):
        raise AudioError(
            f"{name} holds {len(bad)} samples that are NaN or infinite, "
            f"the first at {bad[0] / waveform.sample_rate:.3f} s; export it again"
        )
