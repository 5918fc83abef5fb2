"""Helpers of the semantic tests: sizes and key lists of the reference models."""

from __future__ import annotations

import json
import re
from pathlib import Path

from indextts2.config import W2VBertConfig, load_json, subset

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
