"""A voice: everything that is computed from reference audio, once. Saved to and loaded from one safetensors file."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from indextts2.errors import AudioError, CheckpointError

if TYPE_CHECKING:
    import torch

    from indextts2.types import Waveform

FORMAT = "indextts2-voice"
FORMAT_VERSION = "1"
T = TypeVar("T")


@dataclass(frozen=True)
class Voice:
    """Reference-audio values of one speaker under one model.

    Shapes (D: GPT width, S: style size, P: prompt mel frames, C: regulator channels, n: speaker latents):
        speaker_latents (1, n, D), own_emotion (1, D), audio_emotion (1, D), style (1, S),
        prompt_condition (1, P, C), prompt_mel (1, n_mels, P); all float32.

    `own_emotion` comes from the features of the speaker path, `audio_emotion` from the same audio read by the emotion
    path; the official pipeline uses the latter when no emotion audio is given (04 section 3).
    `model` is the fingerprint of the model that made it, `source` the SHA-256 of the audio samples.
    """

    speaker_latents: torch.Tensor
    own_emotion: torch.Tensor
    audio_emotion: torch.Tensor
    style: torch.Tensor
    prompt_condition: torch.Tensor
    prompt_mel: torch.Tensor
    model: str
    source: str
    seconds: float
    name: str = ""
    metadata: dict[str, str] = field(default_factory=dict)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors by field name."""
        import torch

        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: value for name, value in values.items() if isinstance(value, torch.Tensor)}

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file atomically and return its path."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {f"meta.{key}": value for key, value in self.metadata.items()}
        header |= {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "source": self.source,
            "seconds": repr(self.seconds),
            "name": self.name,
        }
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        os.close(handle)
        try:
            save_file({k: v.contiguous().cpu() for k, v in self.tensors().items()}, temporary, metadata=header)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Voice:
        """Read a voice file.

        Raises:
            CheckpointError: the file is missing, is no voice file, or lacks a tensor.
        """
        from safetensors import SafetensorError, safe_open

        path = Path(path)
        names = [f.name for f in fields(cls)][:6]
        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                if header.get("format") != FORMAT or header.get("format_version") != FORMAT_VERSION:
                    raise CheckpointError(
                        f"{path} is not a voice file of version {FORMAT_VERSION}; make one with `indextts2 voice make`"
                    )
                if sorted(file.keys()) != sorted(names):
                    raise CheckpointError(f"{path} holds {sorted(file.keys())}; a voice has {sorted(names)}")
                tensors = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the voice file {path}: {error}") from error
        metadata = {k.removeprefix("meta."): v for k, v in header.items() if k.startswith("meta.")}
        return cls(
            **tensors,
            model=header["model"],
            source=header["source"],
            seconds=float(header["seconds"]),
            name=header.get("name", ""),
            metadata=metadata,
        )

    def to(self, device: torch.device) -> Voice:
        """The voice with its tensors on `device`."""
        moved: dict[str, Any] = {name: tensor.to(device) for name, tensor in self.tensors().items()}
        return replace(self, **moved)

    def check_model(self, fingerprint: str) -> Voice:
        """Return the voice, or raise CheckpointError if another model made it."""
        if self.model != fingerprint:
            raise CheckpointError(
                f"the voice {self.name or self.source[:12]} was made with model {self.model[:12]}, but the loaded "
                f"model is {fingerprint[:12]}; make the voice again from its audio with `indextts2 voice make`"
            )
        return self


def content_key(waveform: Waveform) -> str:
    """SHA-256 over samples and rate: equal audio has an equal key, whatever its file is called."""
    digest = hashlib.sha256(str(waveform.sample_rate).encode())
    digest.update(waveform.samples.tobytes())
    return digest.hexdigest()


class ContentCache(Generic[T]):
    """The `size` values used last, by key. Safe for threads; a value is made outside the lock, once it is asked for."""

    def __init__(self, size: int) -> None:
        if size < 0:
            raise AudioError(f"a cache holds 0 or more entries, not {size}")
        self._size = size
        self._values: OrderedDict[str, T] = OrderedDict()
        self._lock = Lock()

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The value of `key`, made by `make()` if it is not held."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def __len__(self) -> int:
        return len(self._values)
