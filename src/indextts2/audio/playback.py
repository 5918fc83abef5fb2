"""Playing audio on the machine's own device, at once or chunk by chunk (extra `playback`)."""

from __future__ import annotations

from types import ModuleType, TracebackType
from typing import Any, Self

import numpy as np

from indextts2.audio.formats import check_samples
from indextts2.errors import AudioError, MissingExtraError
from indextts2.types import Waveform


def play(waveform: Waveform) -> None:
    """Play a waveform and return when it has been heard.

    Raises:
        MissingExtraError: sounddevice is not installed.
        AudioError: there is no output device, or it refuses the sample rate.
    """
    with Player(waveform.sample_rate) as player:
        player.write(waveform.samples)


class Player:
    """Plays chunks as they come. Use as a context manager: leaving it waits until all is heard, an error stops it."""

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self._device = _sounddevice()
        self._stream: Any = self._call(self._device.OutputStream, samplerate=sample_rate, channels=1, dtype="float32")
        try:
            self._call(self._stream.start)
        except AudioError:
            self._stream.close()
            raise

    def write(self, samples: np.ndarray) -> None:
        """Play (N,) float samples in [-1, 1]; returns when the device has taken them all."""
        if self._stream is None:
            raise AudioError("the player is closed; open a new one to play more")
        self._call(self._stream.write, np.clip(check_samples(samples), -1.0, 1.0)[:, None])

    def close(self) -> None:
        """Wait until all is heard and free the device."""
        self._end("stop")

    def abort(self) -> None:
        """Stop at once and free the device."""
        self._end("abort")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _end(self, how: str) -> None:
        if self._stream is None:
            return
        stream, self._stream = self._stream, None
        try:
            self._call(getattr(stream, how))
        finally:
            self._call(stream.close)

    def _call(self, function: Any, *args: Any, **options: Any) -> Any:
        """Call into sounddevice; its errors become AudioError."""
        try:
            return function(*args, **options)
        except self._device.PortAudioError as error:
            raise AudioError(
                f"cannot play {self.sample_rate} Hz mono: {error}; connect an audio device, or write a file instead"
            ) from error


def _sounddevice() -> ModuleType:
    try:
        import sounddevice
    except ImportError as error:
        raise MissingExtraError("playback", "playback") from error
    except OSError as error:
        # The wheel holds no PortAudio on Linux.
        raise AudioError(f"playback needs the PortAudio library ({error}); install it, e.g. libportaudio2") from error
    return sounddevice
