"""Packaging: what the stages trained arrives in a model directory that loads, small enough to ship."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from indextts2.checkpoints.loading import load_models
from indextts2.errors import CheckpointError, ConfigError
from indextts2.models.vocoder.bigvgan import BigVGAN
from indextts2.training.codec import CodecTrainer
from indextts2.training.data import Corpus
from indextts2.training.embedded import embedded_model_config
from indextts2.training.gpt import GPTStageConfig, GPTTrainer
from indextts2.training.package import package
from indextts2.training.s2mel import S2Mel
from indextts2.training.semantic import Recogniser
from indextts2.training.speaker import SpeakerContrast

MAX_BYTES = 38_000_000


def trainers() -> dict[str, nn.Module]:
    config = embedded_model_config()
    assert config.bigvgan is not None
    torch.manual_seed(0)
    return {
        "semantic": Recogniser(config, 0.0),
        "codec": CodecTrainer(config.semantic_codec),
        "speaker": SpeakerContrast(config.campplus, 10.0),
        "gpt": GPTTrainer(config.gpt, GPTStageConfig()),
        "s2mel": S2Mel(config),
        "vocoder": BigVGAN(config.bigvgan),
    }


@pytest.fixture
def trained(work: Path) -> Path:
    """A work folder with a checkpoint of every stage, untrained but of full size."""
    for name, module in trainers().items():
        (work / name).mkdir()
        torch.save({"ema": module.state_dict(), "step": 7, "seconds": 90.0}, work / name / "last.pt")
    corpus = Corpus(work / "data")
    width = embedded_model_config().semantic_codec.hidden_size
    rng = np.random.default_rng(0)
    features = rng.normal(size=(len(corpus.array("fbank")), width))
    np.save(corpus.folder / "features.npy", features.astype(np.float16))
    np.savez(corpus.folder / "statistics.npz", mean=features.mean(0, dtype=np.float32), var=np.ones(width, np.float32))
    return work


def test_packaged_model_loads_with_the_trained_weights(trained: Path, tmp_path: Path) -> None:
    out = package(trained, tmp_path / "model", {"corpus": "noise"})
    assert sum(path.stat().st_size for path in out.rglob("*")) < MAX_BYTES
    models = load_models(out, device="cpu")
    assert models.config == embedded_model_config()
    saved = torch.load(trained / "gpt" / "last.pt", weights_only=True)["ema"]
    assert torch.allclose(models.gpt.mel_head.weight, saved["voice.mel_head.weight"], atol=1e-3)
    saved = torch.load(trained / "semantic" / "last.pt", weights_only=True)["ema"]
    key = "encoder.layers.0.ffn1.intermediate_dense.weight"
    assert torch.allclose(models.w2v_bert.state_dict()[key], saved[f"encoder.{key}"], atol=1e-3)
    assert models.feature_statistics.var.eq(1).all()
    source = json.loads((out / "manifest.json").read_text())["source"]
    assert source["corpus"] == "noise"
    assert source["stages"]["vocoder"] == {"steps": 7, "minutes": 1.5}


def test_untrained_stage_is_named(trained: Path, tmp_path: Path) -> None:
    (trained / "codec" / "last.pt").unlink()
    with pytest.raises(ConfigError, match=r"codec.last\.pt does not exist"):
        package(trained, tmp_path / "model")


def test_weights_of_other_sizes_are_refused(trained: Path, tmp_path: Path) -> None:
    path = trained / "vocoder" / "last.pt"
    saved = torch.load(path, weights_only=True)
    saved["ema"]["conv_post.weight"] = torch.zeros(1, 2, 3)
    torch.save(saved, path)
    with pytest.raises(CheckpointError, match=r"conv_post\.weight"):
        package(trained, tmp_path / "model")
