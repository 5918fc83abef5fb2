"""The sizes that can be measured, and networks of them with random weights.

Time does not depend on the values of weights, as long as they are finite and neither vanish nor explode: these are
normal with the variance that keeps activations near one. So no checkpoint is needed at any size.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from indextts2.checkpoints.layout import ModelDirectory, resolve_model
from indextts2.checkpoints.modules import build_empty
from indextts2.config import (
    BigVGANConfig,
    ConformerConfig,
    DiTConfig,
    GPTConfig,
    LengthRegulatorConfig,
    ModelConfig,
    S2MelConfig,
    SemanticCodecConfig,
    W2VBertConfig,
    WaveNetConfig,
)

SIZES = ("full", "small", "embedded")
GAINS = (".weight", ".gamma", ".running_var")
# Names of tensors that need another scale: an output that is clipped hides differences.
QUIET = "conv_post.weight"


def model_config(size: str) -> ModelConfig:
    """The configuration of `size`: the published model, a small one of the same shape, or the embedded voice."""
    if size == "embedded":
        return ModelDirectory.open(resolve_model(None)).config
    full = ModelConfig(
        s2mel=S2MelConfig(latent_projection=(256, 128)),
        w2v_bert=W2VBertConfig(),
        bigvgan=BigVGANConfig(use_bias_at_final=False, use_tanh_at_final=False),
    )
    return full if size == "full" else _small(full)


def _small(full: ModelConfig) -> ModelConfig:
    conditioner = ConformerConfig(output_size=64, linear_units=128, attention_heads=4, num_blocks=2)
    emotion = dataclasses.replace(conditioner, linear_units=96, attention_heads=2)
    assert full.bigvgan is not None
    return dataclasses.replace(
        full,
        gpt=GPTConfig(
            model_dim=128, layers=4, heads=4, condition_module=conditioner, emo_condition_module=emotion
        ),
        semantic_codec=SemanticCodecConfig(vocos_dim=64, vocos_intermediate_dim=128, vocos_num_layers=2),
        s2mel=S2MelConfig(
            length_regulator=LengthRegulatorConfig(channels=64),
            dit=DiTConfig(hidden_dim=64, num_heads=4, depth=3, content_dim=64),
            wavenet=WaveNetConfig(hidden_dim=64, num_layers=2),
            latent_projection=(32, 16),
        ),
        w2v_bert=W2VBertConfig(num_hidden_layers=4, intermediate_size=256),
        bigvgan=dataclasses.replace(full.bigvgan, upsample_initial_channel=128),
        semantic_output_layer=3,
    )  # fmt: skip


def network(name: str, config: ModelConfig) -> nn.Module:
    """The module `name` of the configuration on the CPU, in eval mode, with random weights."""
    module = build_empty(name, config)
    generator = torch.Generator().manual_seed(1)
    state = {key: _values(key, tensor, generator) for key, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def _values(key: str, like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.dim() < 2:
        return torch.randn(like.shape, generator=generator).mul_(0.02).add_(key.endswith(GAINS))
    values = torch.randn(like.shape, generator=generator)
    return values.mul_((0.02 if key.endswith(QUIET) else 1.0) / like[0].numel() ** 0.5)
