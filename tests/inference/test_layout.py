"""Weights of few rows lie in memory as the kernel for few rows reads them."""

from __future__ import annotations

import pytest
import torch

from indextts2 import IndexTTS2
from indextts2.checkpoints.loading import load_models
from indextts2.inference.layout import FEW_ROW_LAYERS
from indextts2.native import library

pytestmark = pytest.mark.skipif(
    library.native().library is None or not library.loaded().product_is_fast(), reason="no kernel for few rows"
)


def test_values_are_as_loaded(tiny_tts: IndexTTS2) -> None:
    assert tiny_tts.directory is not None
    loaded = load_models(tiny_tts.directory, device="cpu")
    for name in FEW_ROW_LAYERS:
        found, expected = tiny_tts.models.modules[name].state_dict(), loaded.modules[name].state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in found)


def test_every_pattern_meets_a_layer(tiny_tts: IndexTTS2) -> None:
    for name in FEW_ROW_LAYERS:
        weights = [p for key, p in tiny_tts.models.modules[name].named_parameters() if key.endswith("weight")]
        assert any(p.dim() > 1 and p.stride(0) == 1 < p.stride(1) for p in weights), name


@torch.inference_mode()
def test_logits_of_a_row_do_not_depend_on_other_rows(tiny_tts: IndexTTS2) -> None:
    gpt = tiny_tts.models.gpt
    states = torch.randn(12, gpt.config.model_dim, generator=torch.Generator().manual_seed(0))
    together = gpt.logits(states)
    for row in range(len(states)):
        assert torch.equal(gpt.logits(states[row : row + 1])[0], together[row])


@torch.inference_mode()
def test_tables_of_a_time_do_not_depend_on_other_times(tiny_tts: IndexTTS2) -> None:
    dit = tiny_tts.models.dit
    times = torch.linspace(0, 1, 12)
    together = dit.time_tables(times)
    for row in range(len(times)):
        one = dit.time_tables(times[row : row + 1])
        assert torch.equal(one.wavenet[0], together.wavenet[row])
        assert torch.equal(one.final[0], together.final[row])
