"""A complete model directory with tiny networks of its own sizes, in the official layout."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from indextts2.checkpoints.config_files import dump_model_config
from indextts2.checkpoints.convert import save_modules
from indextts2.checkpoints.modules import build_empty
from indextts2.checkpoints.official import MODULES
from indextts2.config import (
    BigVGANConfig,
    CampPlusConfig,
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

CONDITIONER = ConformerConfig(output_size=16, linear_units=16, attention_heads=2, num_blocks=1, perceiver_depth=1)
TINY = ModelConfig(
    gpt=GPTConfig(
        model_dim=32, layers=2, heads=2, max_mel_tokens=50, max_text_tokens=30, number_text_tokens=40,
        number_mel_codes=18, start_mel_token=16, stop_mel_token=17, condition_module=CONDITIONER,
        emo_condition_module=CONDITIONER, condition_input_dim=32, condition_latents=3, emotion_latent_dim=24,
    ),
    semantic_codec=SemanticCodecConfig(16, 32, 4, 16, 24, 1),
    s2mel=S2MelConfig(
        style_dim=24, length_regulator=LengthRegulatorConfig(16, 32), dit=DiTConfig(32, 2, 3, 80, 16, 256),
        wavenet=WaveNetConfig(32, 2), latent_projection=(8, 6),
    ),
    w2v_bert=W2VBertConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, intermediate_size=48),
    campplus=CampPlusConfig(
        embedding_size=24, head_channels=4, initial_channels=8, growth_rate=4, bottleneck_channels=8,
        block_layers=(1, 1, 1),
    ),
    bigvgan=BigVGANConfig(upsample_initial_channel=64, use_bias_at_final=False, use_tanh_at_final=False),
    semantic_output_layer=2,
)  # fmt: skip


def filled(name: str, config: ModelConfig) -> nn.Module:
    """A module with a random value in every parameter and buffer."""
    module = build_empty(name, config)
    state = {
        key: torch.rand(value.shape) + 0.1 if value.is_floating_point() else torch.zeros(value.shape, dtype=value.dtype)
        for key, value in module.state_dict().items()
    }
    module.load_state_dict(state, assign=True)
    return module.eval().requires_grad_(False)


def random_constants(config: ModelConfig) -> dict[str, torch.Tensor]:
    rows, width = sum(config.emo_num), config.semantic_codec.hidden_size
    return {
        "mean": torch.randn(width), "var": torch.rand(width) + 0.1,
        "emotion_matrix": torch.randn(rows, config.gpt.model_dim),
        "speaker_matrix": torch.randn(rows, config.s2mel.style_dim),
    }  # fmt: skip


@pytest.fixture(scope="session")
def tiny_modules() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {name: filled(name, TINY) for name in MODULES}


@pytest.fixture(scope="session")
def tiny_constants() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return random_constants(TINY)


@pytest.fixture
def tiny_official(tmp_path: Path, tiny_modules: dict[str, nn.Module], tiny_constants: dict[str, torch.Tensor]) -> Path:
    """The tiny model with the wrappings of the official files; config.yaml does not name the projection's widths."""
    folder = tmp_path / "official"
    (folder / "hf_cache/w2v-bert-2.0").mkdir(parents=True)
    (folder / "hf_cache/bigvgan").mkdir()
    config = dataclasses.replace(TINY, s2mel=dataclasses.replace(TINY.s2mel, latent_projection=None))
    values = dump_model_config(config)
    for name, file in {"w2v_bert": "w2v-bert-2.0", "bigvgan": "bigvgan"}.items():
        (folder / "hf_cache" / file / "config.json").write_text(json.dumps(values.pop(name)))
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    (folder / "bpe.model").write_bytes(b"pieces")
    state = {name: module.state_dict() for name, module in tiny_modules.items()}
    torch.save({"model": {f"module.{k}": v for k, v in state["gpt"].items()}, "epoch": 3}, folder / "gpt.pth")
    net = {
        "cfm": {f"module.estimator.{k}": v for k, v in state["dit"].items()},
        "length_regulator": state["length_regulator"], "gpt_layer": state["latent_projection"],
    }  # fmt: skip
    torch.save({"net": net, "optimizer": {"lr": 1.0}, "iters": 7}, folder / "s2mel.pth")
    save_file(state["w2v_bert"], folder / "hf_cache/w2v-bert-2.0/model.safetensors")
    save_file(state["codec"], folder / "hf_cache/semantic_codec_model.safetensors")
    torch.save(state["campplus"], folder / "hf_cache/campplus_cn_common.bin")
    torch.save({"generator": state["bigvgan"]}, folder / "hf_cache/bigvgan/bigvgan_generator.pt")
    torch.save({key: tiny_constants[key] for key in ("mean", "var")}, folder / "wav2vec2bert_stats.pt")
    torch.save(tiny_constants["speaker_matrix"], folder / "feat1.pt")
    torch.save(tiny_constants["emotion_matrix"].requires_grad_(), folder / "feat2.pt")
    return folder


@pytest.fixture
def tiny_converted(tmp_path: Path, tiny_modules: dict[str, nn.Module], tiny_constants: dict[str, torch.Tensor]) -> Path:
    tokenizer = tmp_path / "pieces"
    tokenizer.write_bytes(b"pieces")
    return save_modules(tmp_path / "converted", TINY, tiny_modules, tiny_constants, copies={"bpe.model": tokenizer})
