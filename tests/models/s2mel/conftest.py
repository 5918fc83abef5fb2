"""Modules of the small name-derived checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from indextts2.config import ModelConfig, load_yaml, parse_model_config

States = dict[str, dict[str, Tensor]]


@pytest.fixture(scope="session")
def small_config(small_checkpoint: Path) -> ModelConfig:
    return parse_model_config(load_yaml(small_checkpoint / "config.yaml"))


@pytest.fixture(scope="session")
def small_states(small_checkpoint: Path) -> States:
    return torch.load(small_checkpoint / "s2mel.pth", weights_only=True)["net"]


@pytest.fixture(scope="session")
def manifests(reference: Path) -> dict[str, dict[str, list]]:
    """Entries of s2mel.pth by size."""
    files = {size: reference / f"manifest_{size}.json" for size in ("small", "full")}
    return {size: json.loads(file.read_text())["s2mel.pth"] for size, file in files.items()}


@pytest.fixture(scope="session")
def configs(reference: Path) -> dict[str, ModelConfig]:
    files = {size: reference / "checkpoint_files" / f"config_{size}.yaml" for size in ("small", "full")}
    return {size: parse_model_config(load_yaml(file)) for size, file in files.items()}
