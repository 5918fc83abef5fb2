"""Building the networks of a configuration without giving their parameters memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from indextts2.config import ModelConfig
from indextts2.errors import CheckpointError


class _EmptyOnMeta(TorchFunctionMode):
    """Parameters, which start empty or random, go to the meta device; buffers that are computed stay real.

    So nothing is drawn from the global random generator either. Nor is anything computed on the meta device: the values
    are replaced anyway, and for drawing or scaling there torch would import its compiler, which takes a second.
    """

    REDIRECTED = (torch.empty, torch.randn, torch.rand)
    SCALING = (torch.Tensor.mul, torch.Tensor.__mul__)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__module__", None) == nn.init.__name__:
            return args[0] if args else kwargs["tensor"]
        if func in self.REDIRECTED:
            kwargs.pop("generator", None)
            return torch.empty(*args, **kwargs | {"device": "meta"})
        if func in self.SCALING and args[0].is_meta and isinstance(args[1], float):
            return args[0]
        return func(*args, **kwargs)


def build_empty(name: str, config: ModelConfig, *, with_text_head: bool = False) -> nn.Module:
    """The module `name` (one of `MODULES`) in its configured sizes, to be filled by assignment.

    `with_text_head` is for training: it gives the GPT the head that predicts text.

    Raises:
        CheckpointError: the configuration lacks the sizes of this module.
    """
    builders = {
        "w2v_bert": _w2v_bert, "codec": _codec, "campplus": _campplus, "latent_projection": _latent_projection,
        "length_regulator": _length_regulator, "dit": _dit, "bigvgan": _bigvgan,
    }  # fmt: skip
    with _EmptyOnMeta():
        return _gpt(config, with_text_head) if name == "gpt" else builders[name](config)


def complete_config(config: ModelConfig, projection: Mapping[str, torch.Tensor]) -> ModelConfig:
    """Take the inner widths of the latent projection from its tensors where the configuration leaves them out.

    Raises:
        CheckpointError: the tensors are no chain of linear layers.
    """
    if config.s2mel.latent_projection is not None:
        return config
    from indextts2.models.s2mel.latent_projection import LatentProjection

    expected = {f"{layer}.{kind}" for layer in range(len(projection) // 2) for kind in ("weight", "bias")}
    if not expected or set(projection) != expected or any(t.dim() == 0 for t in projection.values()):
        raise CheckpointError(f"gpt_layer holds {sorted(projection)}; expected `<n>.weight` and `<n>.bias` from 0 on")
    widths = LatentProjection.inner_widths(projection)
    return dataclasses.replace(config, s2mel=dataclasses.replace(config.s2mel, latent_projection=widths))


def _w2v_bert(config: ModelConfig) -> nn.Module:
    from indextts2.models.semantic.w2v_bert import W2VBert

    return W2VBert(_known(config.w2v_bert, "w2v_bert"), config.semantic_output_layer)


def _codec(config: ModelConfig) -> nn.Module:
    from indextts2.models.semantic.codec import SemanticCodec

    return SemanticCodec(config.semantic_codec)


def _campplus(config: ModelConfig) -> nn.Module:
    from indextts2.models.speaker.campplus import CampPlus

    return CampPlus(config.campplus)


def _gpt(config: ModelConfig, with_text_head: bool) -> nn.Module:
    from indextts2.models.gpt.unified_voice import UnifiedVoice

    return UnifiedVoice(config.gpt, with_text_head=with_text_head)


def _latent_projection(config: ModelConfig) -> nn.Module:
    from indextts2.models.s2mel.latent_projection import LatentProjection

    inner = _known(config.s2mel.latent_projection, "s2mel.latent_projection")
    return LatentProjection(config.gpt.model_dim, inner, config.semantic_codec.hidden_size)


def _length_regulator(config: ModelConfig) -> nn.Module:
    from indextts2.models.s2mel.length_regulator import LengthRegulator

    return LengthRegulator(config.s2mel.length_regulator)


def _dit(config: ModelConfig) -> nn.Module:
    from indextts2.models.s2mel.dit import DiT

    return DiT(config.s2mel)


def _bigvgan(config: ModelConfig) -> nn.Module:
    from indextts2.models.vocoder.bigvgan import BigVGAN

    return BigVGAN(_known(config.bigvgan, "bigvgan"))


def _known(section: Any, name: str) -> Any:
    if section is None:
        raise CheckpointError(f"the configuration has no section {name}")
    return section
