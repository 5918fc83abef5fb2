"""Adapter files: one safetensors file with the low-rank changes of a GPT and what they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from indextts2.errors import CheckpointError

FORMAT = "indextts2-lora"
FORMAT_VERSION = "1"


@dataclass(frozen=True)
class Adapter:
    """Tensors by name (`h.0.attn.c_attn.a`), their scale, and the fingerprint of the model they were trained for."""

    tensors: Mapping[str, torch.Tensor]
    scale: float
    model: str

    def save(self, path: str | Path) -> Path:
        """Write the adapter atomically and return its path."""
        from safetensors.torch import save_file

        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        header = {"format": FORMAT, "format_version": FORMAT_VERSION, "scale": repr(self.scale), "model": self.model}
        partial = path.with_name(f".{path.name}.part")
        try:
            save_file({name: t.detach().cpu().contiguous() for name, t in self.tensors.items()}, partial, header)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path) -> Adapter:
        """Read an adapter file.

        Raises:
            CheckpointError: the file is missing or is no adapter.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read the adapter {path}: {error}") from error
        if header.get("format") != FORMAT or header.get("format_version") != FORMAT_VERSION:
            raise CheckpointError(
                f"{path} is no adapter of version {FORMAT_VERSION}; `indextts2 train finetune` makes one"
            )
        return cls(tensors, float(header["scale"]), header["model"])

    def check_model(self, fingerprint: str) -> None:
        """Raise CheckpointError if the adapter was trained for another model."""
        if self.model != fingerprint:
            raise CheckpointError(
                f"the adapter was trained for model {self.model[:12]}, but the loaded model is {fingerprint[:12]}"
            )
