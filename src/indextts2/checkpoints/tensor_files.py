"""Reading files of tensors without trusting them: pickles only with `weights_only`, everything mapped, not copied."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from indextts2.errors import CheckpointError

PICKLE_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")


def read_pickle(path: Path) -> Any:
    """A torch pickle on the CPU, its tensors mapped from the file where its format (zip) allows that.

    Raises:
        CheckpointError: the file is missing, damaged, or holds anything but tensors and plain containers.
    """
    _require_file(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    except Exception as error:  # a damaged or hostile pickle may raise anything
        raise CheckpointError(f"{path} cannot be read: {_first_line(error)}; the file is damaged or unsafe") from error


def _can_be_mapped(path: Path) -> bool:
    """Whether the file is a zip archive without compression; files from before torch 1.6 are no archives."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file, mapped from it.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    _require_file(path)
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            keys = file.keys()
            return {key: file.get_tensor(key) for key in keys}
    except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a valid safetensors file: {_first_line(error)}") from error


def read_state_dict(path: Path) -> Any:
    """What a file of either kind holds, by its extension."""
    return read_safetensors(path) if path.suffix == ".safetensors" else read_pickle(path)


def as_tensors(value: Any, where: str) -> dict[str, torch.Tensor]:
    """Check that `value` is a mapping from names to tensors.

    Raises:
        CheckpointError: it is something else, or an entry is not a dense tensor.
    """
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{where} must be a mapping from names to tensors, not {type(value).__name__}")
    return {_as_key(key, where): as_tensor(item, f"{where}, entry {key!r},") for key, item in value.items()}


def as_tensor(value: Any, where: str) -> torch.Tensor:
    """Check that `value` is a dense tensor; its gradient requirement is dropped."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided or value.is_quantized:
        raise CheckpointError(f"{where} must be a dense tensor, not {type(value).__name__}")
    return value.detach()


def _as_key(key: Any, where: str) -> str:
    if not isinstance(key, str):
        raise CheckpointError(f"{where} has the key {key!r}; keys must be strings")
    return key


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]
