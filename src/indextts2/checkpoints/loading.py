"""From a model directory to networks that are ready to run: strict, lazily paged, never filled by chance.

Parameters are assigned tensors mapped from the files, so that memory is read when first used (on the CPU, in
float32). Weight norm is folded on the way (the one computation at load).
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import torch
from torch import nn

from indextts2.checkpoints.converted import ConvertedReader
from indextts2.checkpoints.devices import choose_device, choose_dtype, compute_in_float32
from indextts2.checkpoints.keys import KeyPlan, plan_keys
from indextts2.checkpoints.layout import Layout, ModelDirectory, resolve_model
from indextts2.checkpoints.modules import build_empty, complete_config
from indextts2.checkpoints.official import MODULES, OfficialReader, Stored
from indextts2.checkpoints.weight_norm import fold
from indextts2.config import ModelConfig
from indextts2.errors import CheckpointError, UsageError
from indextts2.models.semantic.statistics import FeatureStatistics

if TYPE_CHECKING:
    from indextts2.models.gpt.unified_voice import UnifiedVoice
    from indextts2.models.s2mel.dit import DiT
    from indextts2.models.s2mel.latent_projection import LatentProjection
    from indextts2.models.s2mel.length_regulator import LengthRegulator
    from indextts2.models.semantic.codec import SemanticCodec
    from indextts2.models.semantic.w2v_bert import W2VBert
    from indextts2.models.speaker.campplus import CampPlus
    from indextts2.models.vocoder.bigvgan import BigVGAN

logger = logging.getLogger(__name__)

M = TypeVar("M", bound=nn.Module)
Reader = OfficialReader | ConvertedReader

# The one module that may run in half precision (spec 01 section 1.2); the others always compute in float32.
REDUCED_PRECISION_MODULE = "gpt"
SAMPLED_BLOCKS, BLOCK_BYTES, TAIL_BYTES = 64, 4096, 65536


@dataclass(frozen=True)
class EmotionMatrices:
    """`emotion` (R, D) and `speaker` (R, S): row r of the second is the speaker who recorded row r of the first."""

    emotion: torch.Tensor
    speaker: torch.Tensor


@dataclass(frozen=True)
class Models:
    """All networks of a model on one device, in eval mode, without gradients.

    A module that was not loaded (see `only` of `load_models`) raises CheckpointError when it is asked for.
    `gpt_dtype` is the compute dtype of the GPT; every other module is float32.
    `fingerprint` identifies the weights: equal for a directory and its float32 conversion.
    """

    config: ModelConfig
    modules: Mapping[str, nn.Module]
    feature_statistics: FeatureStatistics
    emotion_matrices: EmotionMatrices
    device: torch.device
    gpt_dtype: torch.dtype
    fingerprint: str
    tokenizer_file: Path | None = None
    emotion_text_directory: Path | None = None

    def module(self, name: str) -> nn.Module:
        """The module with this name.

        Raises:
            CheckpointError: it was not loaded.
        """
        if name not in self.modules:
            raise CheckpointError(f"{name} was not loaded, only {', '.join(self.modules)}; ask load_models for it")
        return self.modules[name]

    @property
    def w2v_bert(self) -> W2VBert:
        return cast("W2VBert", self.module("w2v_bert"))

    @property
    def codec(self) -> SemanticCodec:
        return cast("SemanticCodec", self.module("codec"))

    @property
    def campplus(self) -> CampPlus:
        return cast("CampPlus", self.module("campplus"))

    @property
    def gpt(self) -> UnifiedVoice:
        return cast("UnifiedVoice", self.module("gpt"))

    @property
    def latent_projection(self) -> LatentProjection:
        return cast("LatentProjection", self.module("latent_projection"))

    @property
    def length_regulator(self) -> LengthRegulator:
        return cast("LengthRegulator", self.module("length_regulator"))

    @property
    def dit(self) -> DiT:
        return cast("DiT", self.module("dit"))

    @property
    def bigvgan(self) -> BigVGAN:
        return cast("BigVGAN", self.module("bigvgan"))


def load_models(
    directory: str | Path | ModelDirectory,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    only: Iterable[str] | None = None,
    *,
    with_text_head: bool = False,
) -> Models:
    """Load a model.

    Args:
        directory: an opened model directory, its path, or a name that `resolve_model` knows.
        device: None chooses the best one.
        dtype: compute dtype of the GPT; None is float32.
        only: names of the modules to load (see `MODULES`); None loads all that the directory holds.
        with_text_head: build the GPT with its text head, which only training needs.

    Raises:
        CheckpointError: a file, key or shape is missing, unknown or wrong; nothing is replaced or skipped.
        ConfigError: the configuration is not valid.
        UsageError: a device, dtype or module name is unknown.
    """
    if not isinstance(directory, ModelDirectory):
        directory = ModelDirectory.open(resolve_model(directory))
    target = choose_device(device)
    gpt_dtype = choose_dtype(dtype, target)
    compute_in_float32(target)
    reader = open_reader(directory)
    names = _chosen(reader, only)
    config = directory.config
    if "latent_projection" in reader.modules:
        config = complete_config(config, reader.module("latent_projection").tensors)
    modules = {}
    for name in names:
        module = build_empty(name, config, with_text_head=with_text_head)
        modules[name] = fill(module, reader.module(name), module_dtype(name, gpt_dtype)).to(target)
    statistics, matrices = read_constants(reader, config)
    return Models(
        config=config,
        modules=modules,
        feature_statistics=statistics.to(target),
        emotion_matrices=EmotionMatrices(matrices.emotion.to(target), matrices.speaker.to(target)),
        device=target,
        gpt_dtype=gpt_dtype,
        fingerprint=fingerprint(reader),
        tokenizer_file=directory.tokenizer_file,
        emotion_text_directory=directory.emotion_text_directory,
    )


def open_reader(directory: ModelDirectory) -> Reader:
    """The reader of the directory's form."""
    return ConvertedReader(directory) if directory.layout is Layout.CONVERTED else OfficialReader(directory)


def module_dtype(name: str, gpt_dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a module computes."""
    return gpt_dtype if name == REDUCED_PRECISION_MODULE else torch.float32


def fill(module: M, stored: Stored, dtype: torch.dtype = torch.float32) -> M:
    """Assign the tensors of `stored` to the parameters and buffers of `module`, strictly.

    Raises:
        CheckpointError: a key is unknown, missing or misshapen; the message names it.
    """
    shapes = {key: tuple(tensor.shape) for key, tensor in stored.tensors.items()}
    plan = plan_keys(module, shapes, stored.file)
    if plan.dropped:
        logger.debug("%s: %d keys are not used, e.g. %s", stored.file, len(plan.dropped), plan.dropped[0])
    state = planned_tensors(plan, stored, dtype)
    _require_floats(module, state, stored.file)
    module.load_state_dict(state, strict=False, assign=True)  # strictness is plan_keys' part: counters may be absent
    _require_filled(module, stored.file)
    return module.eval().requires_grad_(False)


def planned_tensors(plan: KeyPlan, stored: Stored, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a plan by parameter name: folded, floating point ones in `dtype`, else as they are stored."""
    return {name: _value([stored.tensors[k] for k in keys], dtype) for name, keys in plan.sources.items()}


def _value(tensors: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    tensor = tensors[0] if len(tensors) == 1 else fold(*tensors)
    return (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()


def _require_filled(module: nn.Module, file: str) -> None:
    """No parameter may be without a value, whatever the reason."""
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if empty := [name for name, tensor in tensors if tensor.is_meta]:
        raise CheckpointError(f"{file} gives no values for {', '.join(empty[:8])} of {type(module).__name__}")


def _require_floats(module: nn.Module, state: Mapping[str, torch.Tensor], file: str) -> None:
    wrong = [name for name, p in module.named_parameters() if p.is_floating_point() != state[name].is_floating_point()]
    if wrong:
        raise CheckpointError(f"{file}: {', '.join(wrong[:8])} must be floating point, not {state[wrong[0]].dtype}")


def _chosen(reader: Reader, only: Iterable[str] | None) -> tuple[str, ...]:
    if only is None:
        return reader.modules
    names = tuple(dict.fromkeys(only))
    if unknown := [name for name in names if name not in MODULES]:
        raise UsageError(f"unknown modules {unknown}; known: {', '.join(MODULES)}")
    return names


def read_constants(reader: Reader, config: ModelConfig) -> tuple[FeatureStatistics, EmotionMatrices]:
    """Statistics of the semantic features and the two matrices, checked against the configuration.

    Raises:
        CheckpointError: a tensor is missing, misshapen or not usable.
    """
    constants = reader.constants()
    mean, var = constants["mean"].float(), constants["var"].float()
    statistics = FeatureStatistics.from_tensors(mean, var, config.semantic_codec.hidden_size)
    rows = sum(config.emo_num)
    wanted = {"emotion_matrix": (rows, config.gpt.model_dim), "speaker_matrix": (rows, config.s2mel.style_dim)}
    for name, shape in wanted.items():
        found = tuple(constants[name].shape)
        if found != shape:
            raise CheckpointError(f"{reader.directory.path}: {name} has shape {list(found)} instead of {list(shape)}")
    matrices = EmotionMatrices(constants["emotion_matrix"].float(), constants["speaker_matrix"].float())
    return statistics.eval().requires_grad_(False), matrices


def fingerprint(reader: Reader) -> str:
    """Identifies the weights of a directory (hexadecimal, 32 digits) without reading all of them.

    A converted model carries it in its manifest. For the official layout it covers the size, evenly spaced blocks and
    the end of every file, where a torch archive keeps the checksums of all its tensors.
    """
    if isinstance(reader, ConvertedReader):
        return reader.manifest.fingerprint
    digest = hashlib.sha256()
    for path in reader.files():
        size = path.stat().st_size
        digest.update(f"{path.name}:{size}".encode())
        with path.open("rb") as file:
            for block in range(SAMPLED_BLOCKS):
                file.seek(size * block // SAMPLED_BLOCKS)
                digest.update(file.read(BLOCK_BYTES))
            file.seek(max(0, size - TAIL_BYTES))
            digest.update(file.read())
    return digest.hexdigest()[:32]
