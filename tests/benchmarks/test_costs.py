"""The closed forms against torch's own count of the operations, at every size; nothing is computed for that."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import costs
from benchmarks.sizes import SIZES, model_config
from indextts2.checkpoints.modules import build_empty
from indextts2.config import ModelConfig
from indextts2.models.vocoder.source import EXCITATION_CHANNELS

FRAMES = 130
PROMPT = 60


def empty(*shape: int) -> torch.Tensor:
    return torch.empty(shape, device="meta")


def module(name: str, config: ModelConfig) -> Any:
    return build_empty(name, config).eval().to("meta").requires_grad_(False)


def counted(call: Callable[[], object]) -> int:
    # Where gradients are on, every product goes through torch's own functions, which it can count.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.fixture(params=SIZES)
def config(request: pytest.FixtureRequest) -> ModelConfig:
    return model_config(request.param)


def test_w2v_bert(config: ModelConfig) -> None:
    assert config.w2v_bert is not None
    features = empty(1, FRAMES, config.w2v_bert.feature_projection_input_dim)
    network = module("w2v_bert", config)
    expected = costs.w2v_bert(config.w2v_bert, config.semantic_output_layer, FRAMES)
    assert counted(lambda: network(features)) == expected.flop
    assert weights(network) == pytest.approx(expected.bytes / 4, rel=0.01)


def test_semantic_codec(config: ModelConfig) -> None:
    features = empty(1, FRAMES, config.semantic_codec.hidden_size)
    network = module("codec", config)
    expected = costs.semantic_codec(config.semantic_codec, FRAMES)
    size = config.semantic_codec
    # The lookup itself asks for a device that computes.
    lookup = costs.linear(FRAMES, size.codebook_dim, size.codebook_size)
    embed = counted(lambda: network.vector_quantizer.embed(torch.zeros(1, FRAMES, dtype=torch.int64, device="meta")))
    project = counted(lambda: network.vector_quantizer.in_project(features))
    assert counted(lambda: network.encode(features)) + embed + project + lookup.flop == expected.flop
    assert weights(network) == pytest.approx(expected.bytes / 4, rel=0.02)


def test_campplus(config: ModelConfig) -> None:
    fbank = empty(1, 2 * FRAMES, config.campplus.feat_dim)
    network = module("campplus", config)
    expected = costs.campplus(config.campplus, 2 * FRAMES)
    assert counted(lambda: network(fbank)) == expected.flop
    assert weights(network) == pytest.approx(expected.bytes / 4, rel=0.06)  # many norms


def test_conditioners(config: ModelConfig) -> None:
    features, gpt = empty(1, FRAMES, config.gpt.condition_input_dim), module("gpt", config)
    assert counted(lambda: gpt.speaker_latents(features)) == costs.speaker_conditioner(config.gpt, FRAMES).flop
    assert counted(lambda: gpt.emotion_vector(features)) == costs.emotion_conditioner(config.gpt, FRAMES).flop


def test_gpt(config: ModelConfig) -> None:
    gpt, rows, codes = module("gpt", config), 50, 30
    prefix = empty(1, rows - 1, config.gpt.model_dim)
    prompt = gpt.prefill(prefix, extra_rows=codes)
    # torch counts the whole rectangle of scores; only what lies before each row is needed.
    assert counted(lambda: gpt.prefill(prefix)) == costs.gpt_rows(config.gpt, rows, rows**2).flop
    ahead = attention_flop(config, rows**2) - attention_flop(config, rows * (rows + 1) / 2)
    head = counted(lambda: gpt.logits(prompt.hidden))
    assert counted(lambda: gpt.prefill(prefix)) == costs.gpt_prefill(config.gpt, rows).flop - head + ahead
    fed = codes - 1
    rectangle = costs.gpt_rows(config.gpt, fed, fed * (rows + fed)).flop
    assert counted(lambda: gpt.latents(prompt, torch.zeros(codes, dtype=torch.int64, device="meta"))) == rectangle
    assert costs.latents(config.gpt, rows, codes).flop == rectangle - attention_flop(config, fed * (fed - 1) / 2)


def attention_flop(config: ModelConfig, pairs: float) -> float:
    return config.gpt.layers * costs.attention(pairs, config.gpt.model_dim).flop


def test_decode_step(config: ModelConfig) -> None:
    gpt, beams, rows = config.gpt, 3, 100
    step, longer = costs.decode_step(gpt, beams, rows, 50), costs.decode_step(gpt, beams, rows, 51)
    blocks = costs.gpt_rows(gpt, beams, beams * (rows + 50 + 1))
    head = costs.linear(beams, gpt.model_dim, gpt.number_mel_codes)
    assert step.flop == blocks.flop + head.flop
    row_bytes = 2 * 4 * gpt.layers * gpt.model_dim
    assert step.bytes == blocks.bytes + head.bytes + row_bytes * (rows + 50 * beams)
    assert longer.bytes - step.bytes == beams * row_bytes


def test_length_regulator(config: ModelConfig) -> None:
    # Its lengths are read back from tensors, which needs real ones.
    part = config.s2mel.length_regulator
    network = build_empty("length_regulator", config).to_empty(device="cpu").requires_grad_(False)
    content = torch.zeros(1, FRAMES, part.in_channels)
    expected = costs.length_regulator(part, FRAMES, 2 * FRAMES)
    assert counted(lambda: network(content, 2 * FRAMES)) == expected.flop
    assert weights(network) == pytest.approx(expected.bytes / 4, rel=0.03)


@pytest.mark.parametrize("prompt", [0, 5, PROMPT])
def test_flow(config: ModelConfig, prompt: int) -> None:
    part, dit, frames, steps = config.s2mel, module("dit", config), FRAMES + prompt, 3
    bands, width = part.dit.in_channels, part.dit.content_dim
    mu, prompt_mel, style = empty(1, frames, width), empty(1, prompt, bands), empty(1, part.style_dim)

    def constants() -> tuple[Any, Any]:
        condition = dit.with_null_branch(dit.condition(prompt_mel, mu, style))
        return condition, dit.time_tables(torch.zeros(steps, device="meta"))

    condition, tables = constants()
    state = empty(2, frames, bands)
    step = costs.flow_step(part, prompt, FRAMES)
    assert counted(lambda: dit.velocity(state, condition, tables.row(0), prompt)) == step.flop
    # The null branch's constant is one row more.
    null = costs.linear(1, part.dit.hidden_dim, part.dit.hidden_dim).flop
    expected = costs.flow_constants(part, prompt, FRAMES, steps).flop
    assert counted(constants) == pytest.approx(expected, abs=null)
    assert costs.flow_segment(part, prompt, FRAMES, steps).flop == expected + steps * step.flop


@pytest.mark.parametrize("pitch_channels", [0, 16])
def test_bigvgan(config: ModelConfig, pitch_channels: int) -> None:
    assert config.bigvgan is not None
    bigvgan, frames = dataclasses.replace(config.bigvgan, pitch_channels=pitch_channels), 20
    network = module("bigvgan", dataclasses.replace(config, bigvgan=bigvgan))
    mel = empty(1, bigvgan.num_mels, frames)

    def synthesis() -> Any:
        if not pitch_channels:
            return network(mel)
        # The excitation itself is no product, and is made of real numbers only.
        excitation = empty(1, EXCITATION_CHANNELS, frames * bigvgan.hop_size)
        return network.source.estimator.scores(mel), network.generate(mel, excitation)

    expected = costs.bigvgan_convolutions(bigvgan, frames)
    assert counted(synthesis) == expected.flop
    assert weights(network) == pytest.approx(expected.bytes / 4, rel=0.01)
    filters = costs.bigvgan(bigvgan, frames).flop - expected.flop
    assert filters == 48 * costs.bigvgan_activations(bigvgan, frames)


def weights(network: torch.nn.Module) -> int:
    """Parameters in matrices and kernels; embedding tables are read by row."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.dim() > 1)


def test_the_full_size_costs_what_is_known_of_it() -> None:
    full = model_config("full")
    assert full.w2v_bert is not None and full.bigvgan is not None
    rates = {
        "w2v-BERT, per reference second": (costs.w2v_bert(full.w2v_bert, 17, 250) * (1 / 5), 42.1e9),
        "codec": (costs.semantic_codec(full.semantic_codec, 250) * (1 / 5), 2.21e9),
        "CAMPPlus": (costs.campplus(full.campplus, 500) * (1 / 5), 1.07e9),
        "speaker conditioner, 15 s": (costs.speaker_conditioner(full.gpt, 750), 126e9),
        "emotion conditioner, 15 s": (costs.emotion_conditioner(full.gpt, 750), 114e9),
        "a row of the GPT": (costs.gpt_rows(full.gpt, 1, 0), 0.944e9),
        "flow of 10 s without prompt": (costs.flow_segment(full.s2mel, 0, 861, 25), 7.32e12),
        "vocoder": (costs.bigvgan(full.bigvgan, 861) * (1 / 10), 157.8e9),
    }
    for name, (cost, flop) in rates.items():
        assert cost.flop == pytest.approx(flop, rel=0.005), name
    assert costs.decode_step(full.gpt, 3, 0, 0).bytes == pytest.approx(1.93e9, rel=0.001)


def test_the_floor_is_the_slower_of_arithmetic_and_memory() -> None:
    cost = costs.Cost(flop=100, bytes=10)
    assert cost.floor_seconds(10, 10) == 10
    assert cost.floor_seconds(1000, 10) == 1
    assert (2 * cost + cost).bytes == 30
