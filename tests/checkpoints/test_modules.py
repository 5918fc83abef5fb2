from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from indextts2.checkpoints.modules import build_empty
from indextts2.checkpoints.official import MODULES
from tests.tiny import tiny_model_config


@pytest.mark.parametrize("name", MODULES)
def test_only_constant_parameters_get_values_and_nothing_is_drawn(name: str) -> None:
    before = torch.get_rng_state()
    module = build_empty(name, tiny_model_config())
    assert any(parameter.is_meta for parameter in module.parameters())
    assert all(parameter.is_meta or parameter.unique().numel() == 1 for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), before)


def test_building_does_not_import_the_compiler() -> None:
    code = """
import sys
from indextts2.checkpoints.modules import build_empty
from indextts2.checkpoints.official import MODULES
from tests.tiny import tiny_model_config
for name in MODULES:
    build_empty(name, tiny_model_config())
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
