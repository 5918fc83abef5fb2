"""Warming up: nothing on a CPU; where graphs are used, usual requests then find what they need."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from indextts2 import IndexTTS2, InferenceConfig, Voice
from indextts2.checkpoints.devices import compute_in_float32
from indextts2.config import GenerationConfig
from indextts2.models.gpt.bursts import Bursts
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.models.s2mel.dit import DiT
from indextts2.models.s2mel.padded import PaddedVelocity

TEXT = "A text of two sentences. This is the second one."


@pytest.fixture
def bursts(tiny_tts: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> Bursts:
    """As on a GPU, without the graphs."""
    bursts = Bursts(tiny_tts.models.gpt)
    monkeypatch.setattr(UnifiedVoice, "bursts", bursts)
    return bursts


@pytest.fixture
def padded(tiny_tts: IndexTTS2, monkeypatch: pytest.MonkeyPatch) -> PaddedVelocity:
    padded = PaddedVelocity(tiny_tts.models.dit)
    monkeypatch.setattr(DiT, "padded", padded)
    return padded


def test_a_cpu_records_nothing(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    assert tiny_tts.warm_up(speaker=tiny_voice, requests=3) is tiny_tts
    assert tiny_tts.models.gpt.bursts is None and tiny_tts.models.dit.padded is None


@pytest.mark.parametrize("changes", [{}, {"guidance_until": 0.5, "prompt_seconds": 0.5}, {"cfg_rate": 0.0}])
def test_requests_find_what_they_need(
    tiny_tts: IndexTTS2, tiny_voice: Voice, bursts: Bursts, padded: PaddedVelocity, changes: dict[str, float]
) -> None:
    generation = GenerationConfig(num_beams=2, max_mel_tokens=300, min_new_tokens=300)
    config = InferenceConfig(seed=1, generation=generation, steps=2, **changes)
    tiny_tts.warm_up(config, tiny_voice, requests=2)
    buffers, sizes = bursts._batches[2].buffers, set(padded._buffers)
    assert buffers.slots == 2 and len(sizes) >= 7
    for codes in (7, 150, 300):
        shorter = dataclasses.replace(generation, max_mel_tokens=codes, min_new_tokens=codes)
        tiny_tts.infer(TEXT, tiny_voice, config=dataclasses.replace(config, generation=shorter))
    assert bursts._batches[2].buffers is buffers
    assert set(padded._buffers) == sizes


def test_without_a_voice_the_flow_is_left_out(tiny_tts: IndexTTS2, bursts: Bursts, padded: PaddedVelocity) -> None:
    tiny_tts.warm_up()
    assert bursts._batches and not padded._buffers


def test_convolutions_of_a_gpu_are_not_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    compute_in_float32(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32
    compute_in_float32(torch.device("cuda"))
    assert not torch.backends.cudnn.allow_tf32
