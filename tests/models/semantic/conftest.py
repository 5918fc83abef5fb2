"""The small reference models of this folder, with the sizes and key lists that belong to them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from indextts2.config import W2VBertConfig, load_json, subset
from indextts2.models.semantic.statistics import FeatureStatistics
from indextts2.models.semantic.w2v_bert import W2VBert

W2V_FILE = "hf_cache/w2v-bert-2.0/model.safetensors"
CODEC_FILE = "hf_cache/semantic_codec_model.safetensors"


def w2v_config(reference: Path, size: str) -> W2VBertConfig:
    return subset(W2VBertConfig, load_json(reference / "checkpoint_files" / f"w2v_bert_{size}.json"), "w2v_bert")


def output_layer(reference: Path, size: str) -> int:
    plan = json.loads((reference / "inputs" / "plan.json").read_text())
    return int(plan["semantic_output_layer"][size])


def manifest_shapes(reference: Path, size: str, file: str, unused: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
    """Shape of every key that the module must hold: weight norm folded, computed and unused keys left out."""
    entries = json.loads((reference / f"manifest_{size}.json").read_text())[file]
    shapes = {}
    for key, (shape, _dtype, _kind, rule) in entries.items():
        if rule == "constructor" or key.endswith("weight_g") or any(re.fullmatch(p, key) for p in unused):
            continue
        shapes[re.sub("weight_v$", "weight", key)] = tuple(shape)
    return shapes


@pytest.fixture(scope="package")
def w2v_bert(reference: Path, small_checkpoint: Path) -> W2VBert:
    model = W2VBert(w2v_config(reference, "small"), output_layer(reference, "small"))
    tensors = load_file(small_checkpoint / W2V_FILE)
    model.load_state_dict({key: tensors[key] for key in model.state_dict()})
    return model.eval()


@pytest.fixture(scope="package")
def statistics(small_checkpoint: Path) -> FeatureStatistics:
    values = torch.load(small_checkpoint / "wav2vec2bert_stats.pt", weights_only=True)
    return FeatureStatistics.from_tensors(values["mean"], values["var"], channels=1024)
