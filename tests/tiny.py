"""A complete model of random weights that runs in milliseconds: the classes of the embedded voice, cut to the bone.

It speaks noise, and never stops by itself: `max_mel_tokens` ends it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from indextts2.checkpoints.convert import save_modules
from indextts2.checkpoints.modules import build_empty
from indextts2.config import (
    BigVGANConfig,
    CampPlusConfig,
    ConformerConfig,
    DiTConfig,
    LengthRegulatorConfig,
    ModelConfig,
    SemanticCodecConfig,
    W2VBertConfig,
    WaveNetConfig,
)
from indextts2.training.embedded import embedded_model_config
from indextts2.training.package import ORIGINS
from indextts2.types import Waveform

CODES = 64


def tiny_model_config() -> ModelConfig:
    """The embedded configuration at widths of 16 to 32; with the official decode positions, so with a second pass."""
    config = embedded_model_config()
    conditioner = ConformerConfig(
        output_size=8, linear_units=8, attention_heads=2, num_blocks=1, perceiver_depth=1, perceiver_head_dim=4
    )
    gpt = dataclasses.replace(
        config.gpt, model_dim=32, layers=2, heads=2, number_mel_codes=CODES + 2, start_mel_token=CODES,
        stop_mel_token=CODES + 1, condition_module=conditioner, emo_condition_module=conditioner,
        condition_input_dim=16, condition_latents=2, emotion_latent_dim=8, skips_first_mel_position=True,
    )  # fmt: skip
    s2mel = dataclasses.replace(
        config.s2mel, style_dim=16, length_regulator=LengthRegulatorConfig(channels=16, in_channels=16),
        dit=DiTConfig(hidden_dim=32, num_heads=2, depth=3, content_dim=16), wavenet=WaveNetConfig(32, 2),
        latent_projection=(16,), steps=2,
    )  # fmt: skip
    return dataclasses.replace(
        config,
        gpt=gpt,
        s2mel=s2mel,
        semantic_codec=SemanticCodecConfig(CODES, 16, 4, 8, 8, 1),
        w2v_bert=W2VBertConfig(16, 1, 2, 16, conv_depthwise_kernel_size=5),
        campplus=CampPlusConfig(
            embedding_size=16, head_channels=4, initial_channels=8, growth_rate=4, bottleneck_channels=8,
            block_layers=(1, 1, 1),
        ),
        bigvgan=BigVGANConfig(
            upsample_rates=(8, 8, 4), upsample_kernel_sizes=(16, 16, 8), upsample_initial_channel=16,
            resblock_kernel_sizes=(3,), resblock_dilation_sizes=((1, 3),), use_tanh_at_final=True,
        ),
        semantic_output_layer=1,
    )  # fmt: skip


def write_tiny_model(folder: Path, config: ModelConfig | None = None) -> Path:
    """Write the model directory; the same weights every time."""
    config = config or tiny_model_config()
    generator = torch.Generator().manual_seed(7)
    modules = {name: build_empty(name, config) for name in ORIGINS}
    for module in modules.values():
        state = {name: _values(name, tensor, generator) for name, tensor in module.state_dict().items()}
        module.load_state_dict(state, assign=True)
    rows = sum(config.emo_num)
    constants = {
        "mean": torch.zeros(16),
        "var": torch.ones(16),
        "emotion_matrix": torch.randn(rows, config.gpt.model_dim, generator=generator),
        "speaker_matrix": torch.randn(rows, config.s2mel.style_dim, generator=generator),
    }
    return save_modules(folder, config, modules, constants)


def _values(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    if not like.is_floating_point():
        return torch.zeros(like.shape, dtype=like.dtype)
    if like.dim() < 2:
        positive = name.endswith(("weight", "running_var"))
        return torch.ones(like.shape) if positive else torch.randn(like.shape, generator=generator) * 0.1
    # A loud vocoder would be clipped everywhere, and clipping hides differences.
    gain = 0.0003 if name == "conv_post.weight" else 1.5
    return torch.randn(like.shape, generator=generator) * (gain / np.sqrt(like[0].numel()))


def recording(seconds: float = 1.2, seed: int = 0) -> Waveform:
    """A reference of noise, loud enough to count as speech."""
    samples = np.random.default_rng(seed).normal(0, 0.1, int(22050 * seconds))
    return Waveform(samples.astype(np.float32), 22050)
