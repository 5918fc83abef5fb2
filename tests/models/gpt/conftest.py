"""The small UnifiedVoice, the features its conditioners take, and a tiny model without reference weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from indextts2.audio.features import seamless_features
from indextts2.config import ConformerConfig, GPTConfig, build, load_yaml
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.models.semantic.statistics import FeatureStatistics
from indextts2.models.semantic.w2v_bert import W2VBert
from tests.conftest import Golden
from tests.models.semantic.conftest import W2V_FILE, output_layer, w2v_config
from tests.models.weights import load_strictly

OFFICIAL_ONLY = ("use_mel_codes_as_input", "mel_length_compression", "train_solo_embeddings", "condition_type")


def gpt_config(reference: Path, size: str) -> GPTConfig:
    values = load_yaml(reference / "checkpoint_files" / f"config_{size}.yaml")["gpt"]
    return build(GPTConfig, values, "gpt", frozenset(OFFICIAL_ONLY))


@pytest.fixture(scope="session")
def gpt_state(small_checkpoint: Path) -> dict[str, Tensor]:
    return torch.load(small_checkpoint / "gpt.pth", weights_only=True)


@pytest.fixture(scope="session")
def voice(reference: Path, gpt_state: dict[str, Tensor]) -> UnifiedVoice:
    """As at inference: without the text head."""
    model = UnifiedVoice(gpt_config(reference, "small"))
    load_strictly(model, gpt_state)
    return model.requires_grad_(False)


@pytest.fixture(scope="session")
def features(reference: Path, small_checkpoint: Path, golden: Golden) -> dict[str, Tensor]:
    """Semantic features (1, T, 1024) of the speaker, the emotion clip, and the speaker read by the emotion path."""
    encoder = W2VBert(w2v_config(reference, "small"), output_layer(reference, "small")).eval()
    tensors = load_file(small_checkpoint / W2V_FILE)
    encoder.load_state_dict({key: tensors[key] for key in encoder.state_dict()})
    stats = torch.load(small_checkpoint / "wav2vec2bert_stats.pt", weights_only=True)
    statistics = FeatureStatistics.from_tensors(stats["mean"], stats["var"], channels=1024)
    inputs = {
        name: (golden[f"{name}_w2v_input_features"], golden[f"{name}_w2v_attention_mask"]) for name in ("spk", "emo")
    }
    frames, mask = seamless_features(golden["spk_as_emo_audio_16k"].reshape(-1))
    inputs["spk_as_emo"] = (frames[None], mask[None])
    with torch.inference_mode():
        return {
            name: statistics(encoder(torch.from_numpy(frames), torch.from_numpy(mask))).clone()
            for name, (frames, mask) in inputs.items()
        }


@pytest.fixture(scope="session")
def text_ids(reference: Path) -> dict[str, list[list[int]]]:
    """Ids of the segments of each text."""
    texts = json.loads((reference / "inputs" / "texts.json").read_text())
    return {name: text["segment_ids"] for name, text in texts.items()}


TINY = GPTConfig(
    model_dim=32,
    layers=2,
    heads=2,
    max_mel_tokens=80,
    max_text_tokens=20,
    number_text_tokens=30,
    number_mel_codes=42,
    start_mel_token=40,
    stop_mel_token=41,
    condition_module=ConformerConfig(16, 24, 2, 1, perceiver_head_dim=8),
    emo_condition_module=ConformerConfig(16, 24, 2, 1, perceiver_head_dim=8),
    condition_input_dim=12,
    condition_latents=4,
    emotion_latent_dim=16,
)


def make_tiny(config: GPTConfig = TINY, *, with_text_head: bool = True, scale: float = 8.0) -> UnifiedVoice:
    """Random weights, large enough for the predictions to differ clearly from each other."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = UnifiedVoice(config, with_text_head=with_text_head).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 2:
                    parameter.mul_(scale if parameter.abs().max() < 0.2 else 1.0)
    return model


@pytest.fixture(scope="session")
def tiny() -> UnifiedVoice:
    return make_tiny()
