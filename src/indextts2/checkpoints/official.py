"""The official layout: which file holds which module, and what wraps its keys (spec 01, 05, 06, 07, 08).

Each rule returns the keys as the module names them. What a file carries besides is dropped here by name.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from indextts2.checkpoints.layout import ModelDirectory
from indextts2.checkpoints.tensor_files import as_tensor, as_tensors, read_pickle, read_state_dict
from indextts2.errors import CheckpointError

logger = logging.getLogger(__name__)

MODULES = ("w2v_bert", "codec", "campplus", "gpt", "latent_projection", "length_regulator", "dit", "bigvgan")
STATISTICS = ("mean", "var")
MATRICES = ("emotion_matrix", "speaker_matrix")

# What training leaves beside the weights, at the top of a file.
TRAINING_ENTRIES = frozenset(
    {"ema", "ema_model", "optimizer", "optimizers", "scheduler", "schedulers", "lr_scheduler", "scaler", "epoch",
     "iters", "iter", "step", "steps", "global_step", "config", "args", "loss", "lr"}
)  # fmt: skip
# Parts of s2mel.pth that hold one module of ours each, with the prefix that every key has.
S2MEL_PARTS = {"dit": ("cfm", "estimator."), "length_regulator": ("length_regulator", ""),
               "latent_projection": ("gpt_layer", "")}  # fmt: skip
DATA_PARALLEL = "module."
W2V_BERT_PREFIX = "wav2vec2_bert."


@dataclass(frozen=True)
class Stored:
    """The tensors of one module as `file` holds them, under the names of its parameters."""

    file: str
    tensors: Mapping[str, torch.Tensor]


class OfficialReader:
    """Reads the files of the official layout; each at most once."""

    def __init__(self, directory: ModelDirectory) -> None:
        self.directory = directory

    @property
    def modules(self) -> tuple[str, ...]:
        """Names of the modules that this directory holds: always all."""
        return MODULES

    def module(self, name: str) -> Stored:
        """Tensors of the module `name` under the names of its parameters.

        Raises:
            CheckpointError: the file is missing, damaged or wrapped in an unknown way.
        """
        if name in S2MEL_PARTS:
            return self._s2mel_part(*S2MEL_PARTS[name])
        path = self.directory.file(name)
        rule: Callable[[Any, str], dict[str, torch.Tensor]] = {
            "gpt": _gpt, "bigvgan": _bigvgan, "w2v_bert": _w2v_bert,
        }.get(name, as_tensors)  # fmt: skip
        tensors = rule(read_state_dict(path), str(path))
        return Stored(str(path), tensors)

    def constants(self) -> dict[str, torch.Tensor]:
        """`mean` and `var` (C,) of the semantic features, `emotion_matrix` (R, D) and `speaker_matrix` (R, S)."""
        path = self.directory.file("statistics")
        statistics = as_tensors(read_pickle(path), str(path))
        if set(statistics) != set(STATISTICS):
            raise CheckpointError(f"{path} holds {sorted(statistics)}; it must hold {list(STATISTICS)}")
        matrices = {role: self.directory.file(role) for role in MATRICES}
        return {**statistics, **{role: as_tensor(read_pickle(file), str(file)) for role, file in matrices.items()}}

    def files(self) -> tuple[Path, ...]:
        """The files of weights, for a fingerprint."""
        roles = ("gpt", "s2mel", "statistics", "emotion_matrix", "speaker_matrix", "w2v_bert", "codec", "campplus",
                 "bigvgan")  # fmt: skip
        return tuple(self.directory.file(role) for role in roles)

    @cached_property
    def _s2mel(self) -> Mapping[str, Any]:
        path = self.directory.file("s2mel")
        content = read_pickle(path)
        if not isinstance(content, Mapping) or not isinstance(content.get("net"), Mapping):
            raise CheckpointError(f"{path} has no entry 'net' with the modules {[p for p, _ in S2MEL_PARTS.values()]}")
        _check_top_level(content, "net", str(path))
        net = content["net"]
        known = {part for part, _ in S2MEL_PARTS.values()}
        if other := sorted(str(key) for key in net if key not in known):
            # The official reader skips further modules; spec 07 section 8.
            logger.warning("%s: modules %s are not part of this model and are left out", path, ", ".join(other))
        return net

    def _s2mel_part(self, part: str, prefix: str) -> Stored:
        where = f"{self.directory.file('s2mel')}, net.{part}"
        if part not in self._s2mel:
            raise CheckpointError(f"{where} is missing; the file holds {sorted(map(str, self._s2mel))}")
        tensors = strip_data_parallel(as_tensors(self._s2mel[part], where), where)
        return Stored(where, _strip(tensors, prefix, where))


def _gpt(content: Any, where: str) -> dict[str, torch.Tensor]:
    """A bare state dict, or one under `model`."""
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        _check_top_level(content, "model", where)
        content = content["model"]
    return strip_data_parallel(as_tensors(content, where), where)


def _bigvgan(content: Any, where: str) -> dict[str, torch.Tensor]:
    """The state dict under `generator`."""
    if not isinstance(content, Mapping) or "generator" not in content:
        raise CheckpointError(f"{where} has no entry 'generator'")
    _check_top_level(content, "generator", where)
    return as_tensors(content["generator"], where)


def _w2v_bert(content: Any, where: str) -> dict[str, torch.Tensor]:
    """Plain keys, or all of them with the prefix that a wrapping model adds."""
    tensors = as_tensors(content, where)
    if any(key.startswith(W2V_BERT_PREFIX) for key in tensors):
        return _strip(tensors, W2V_BERT_PREFIX, where)
    return tensors


def _check_top_level(content: Mapping[Any, Any], wanted: str, where: str) -> None:
    unknown = [key for key in content if key != wanted and key not in TRAINING_ENTRIES]
    if unknown:
        raise CheckpointError(f"{where} has unknown entries {sorted(map(str, unknown))} beside {wanted!r}")


def strip_data_parallel(tensors: dict[str, torch.Tensor], where: str) -> dict[str, torch.Tensor]:
    """Take away the `module.` that DataParallel puts before every key."""
    return _strip(tensors, DATA_PARALLEL, where) if any(k.startswith(DATA_PARALLEL) for k in tensors) else tensors


def _strip(tensors: dict[str, torch.Tensor], prefix: str, where: str) -> dict[str, torch.Tensor]:
    """Take a prefix away that every key must have."""
    for key in tensors:
        if not key.startswith(prefix):
            raise CheckpointError(f"{where}: key {key} does not start with {prefix!r} as the others do")
    return {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
