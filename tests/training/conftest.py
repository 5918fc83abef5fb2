"""A prepared corpus of eight short clips of noise, and a model of the same shape as the embedded one but tiny."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts2.config import ConformerConfig, ModelConfig, SemanticCodecConfig, W2VBertConfig
from indextts2.training.data import HELD_OUT_SPEAKERS, Corpus, prepare_corpus
from indextts2.training.embedded import embedded_model_config

SPEAKERS = ("first", "second", HELD_OUT_SPEAKERS[0])
PHONEMES = "hˈi ɪz, dˈɛst?"


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A work folder whose ``data`` was prepared from generated audio."""
    rng = np.random.default_rng(5)
    source = tmp_path / "corpus"
    source.mkdir()
    lines = []
    for number in range(9):
        seconds = 0.7 + 0.1 * number
        soundfile.write(source / f"{number}.wav", rng.normal(0, 0.1, int(24000 * seconds)), 24000)
        lines.append({"path": f"{number}.wav", "text": "he is dest", "phonemes": PHONEMES,
                      "speaker": SPEAKERS[number % 3], "seconds": seconds})  # fmt: skip
    (source / "manifest.jsonl").write_text("\n".join(map(json.dumps, lines)))
    prepare_corpus(source, tmp_path / "work" / "data")
    return tmp_path / "work"


@pytest.fixture
def corpus(work: Path) -> Corpus:
    return Corpus(work / "data")


@pytest.fixture(scope="session")
def tiny_config() -> ModelConfig:
    """The embedded configuration at widths of 8 to 16."""
    config = embedded_model_config()
    conditioner = ConformerConfig(
        output_size=8, linear_units=8, attention_heads=2, num_blocks=1, perceiver_depth=1, perceiver_head_dim=4
    )
    gpt = dataclasses.replace(
        config.gpt, model_dim=16, layers=4, heads=2, number_mel_codes=18, start_mel_token=16, stop_mel_token=17,
        condition_module=conditioner, emo_condition_module=conditioner, condition_input_dim=16,
        condition_latents=2, emotion_latent_dim=8,
    )  # fmt: skip
    codec = SemanticCodecConfig(
        codebook_size=16, hidden_size=16, codebook_dim=4, vocos_dim=8, vocos_intermediate_dim=8, vocos_num_layers=1
    )
    encoder = W2VBertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, conv_depthwise_kernel_size=5
    )
    return dataclasses.replace(config, gpt=gpt, semantic_codec=codec, w2v_bert=encoder, semantic_output_layer=1)
