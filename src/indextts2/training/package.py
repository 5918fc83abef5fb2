"""From the checkpoints of all stages to one model directory in half precision: the embedded voice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indextts2.checkpoints.convert import save_modules
from indextts2.checkpoints.loading import fill
from indextts2.checkpoints.modules import build_empty
from indextts2.checkpoints.official import Stored
from indextts2.config import EMOTIONS, ModelConfig
from indextts2.errors import ConfigError
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.training.augment import stretch
from indextts2.training.data import Corpus
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import load_trained

# Module of the model directory -> the stage that trains it and the name of the module inside of the trainer.
ORIGINS = {
    "w2v_bert": ("semantic", "encoder."),
    "codec": ("codec", "codec."),
    "campplus": ("speaker", "encoder."),
    "gpt": ("gpt", "voice."),
    "length_regulator": ("s2mel", "length_regulator."),
    "dit": ("s2mel", "dit."),
    "latent_projection": ("s2mel", "latent_projection."),
    "bigvgan": ("vocoder", ""),
}
# Clips that an emotion is averaged over.
AVERAGED_CLIPS = 150
# How many times longer each emotion is spoken than plain speech (Banse and Scherer 1996, Juslin and Laukka 2003: joy,
# anger and fear are fast, sadness slow). The corpus holds no acted emotions; rate is what the small voice learns.
EMOTION_TEMPOS = {
    "happy": 0.88, "angry": 0.85, "sad": 1.22, "afraid": 0.83, "disgusted": 1.1, "melancholic": 1.25,
    "surprised": 0.9, "calm": 1.08,
}  # fmt: skip


def trained_module(work: Path, name: str, config: ModelConfig) -> nn.Module:
    """The module `name` with its averaged weights, in evaluation mode; strict as any loading.

    Raises:
        ConfigError: its stage has not been trained. CheckpointError: the weights do not fit the configuration.
    """
    stage, prefix = ORIGINS[name]
    weights = load_trained(work / stage)
    own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
    return fill(build_empty(name, config), Stored(f"{work / stage} ({name})", own))


@torch.no_grad()
def emotion_vectors(gpt: UnifiedVoice, corpus: Corpus) -> Tensor:
    """Mean emotion vector (8, D) of training clips at the rate of each emotion."""
    chosen = corpus.train[:: max(1, len(corpus.train) // AVERAGED_CLIPS)]
    clips = [corpus.get("features", n, like="fbank").astype(np.float32) for n in chosen]

    def mean(tempo: float) -> Tensor:
        features = (torch.from_numpy(stretch(clip, tempo))[None] for clip in clips)
        return torch.stack([gpt.emotion_vector(x)[0] for x in features]).mean(dim=0)

    return torch.stack([mean(EMOTION_TEMPOS[name]) for name in EMOTIONS])


def model_constants(work: Path, config: ModelConfig, gpt: UnifiedVoice) -> dict[str, Tensor]:
    """Feature statistics and the two matrices; one row per emotion, the same for all speakers."""
    statistics = np.load(work / "data" / "statistics.npz")
    rows = sum(config.emo_num)
    return {
        "mean": torch.from_numpy(statistics["mean"]),
        "var": torch.from_numpy(statistics["var"]),
        "emotion_matrix": emotion_vectors(gpt, Corpus(work / "data")),
        "speaker_matrix": torch.ones(rows, config.s2mel.style_dim),
    }


def training_record(work: Path) -> dict[str, Any]:
    """Steps, minutes and evaluation of every stage, for the manifest."""
    record: dict[str, Any] = {}
    for stage in dict.fromkeys(stage for stage, _ in ORIGINS.values()):
        saved = torch.load(work / stage / "last.pt", map_location="cpu", weights_only=True)
        entry: dict[str, Any] = {"steps": saved["step"], "minutes": round(saved["seconds"] / 60, 1)}
        evaluation = work / stage / "evaluation.json"
        if evaluation.exists():
            entry["evaluation"] = json.loads(evaluation.read_text(encoding="utf-8"))
        record[stage] = entry
    return record


def package(work: Path, out: Path, source: Mapping[str, Any] | None = None) -> Path:
    """Write the model directory `out` from the stages in `work`; returns it.

    Args:
        source: further plain words and numbers for the manifest, e.g. the name of the corpus.

    Raises:
        ConfigError: a stage has not been trained. CheckpointError: weights do not fit, or `out` is in use.
    """
    config = embedded_model_config()
    modules = {name: trained_module(work, name, config) for name in ORIGINS}
    gpt = modules["gpt"]
    if not isinstance(gpt, UnifiedVoice):
        raise ConfigError("the module gpt is no UnifiedVoice")
    constants = model_constants(work, config, gpt)
    record = {"stages": training_record(work), **(source or {})}
    return save_modules(out, config, modules, constants, dtype=torch.float16, source=record)
