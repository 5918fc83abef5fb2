"""Every decoding run of the reference plan, and the processed scores and draws of its sampled runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.models.gpt import decoders
from indextts2.models.gpt.generation import Generation, Request, advance, generate
from indextts2.models.gpt.unified_voice import UnifiedVoice
from tests.conftest import REFERENCE, Golden, golden_error, relative_l2

PLAN = REFERENCE / "inputs" / "plan.json"
RUNS: list[dict[str, Any]] = json.loads(PLAN.read_text())["runs"] if PLAN.exists() else []
SAMPLED = {"temperature": 0.8, "top_k": 30, "top_p": 0.8, "repetition_penalty": 10.0}
SEED = 1234


def emotion_of(run: dict[str, Any], golden: Golden) -> Tensor:
    emotion = run["emotion"]
    name = "emo_vector_emovec" if emotion.get("vector") else f"emovec_alpha{emotion['audio_alpha']}"
    return torch.from_numpy(golden[name])


@pytest.fixture(scope="module")
def prefix_of(voice: UnifiedVoice, golden: Golden, text_ids: dict[str, list[list[int]]]) -> Any:
    def make(run: dict[str, Any]) -> Tensor:
        latents = torch.from_numpy(golden["speech_conditioning_latent"])
        ids = torch.tensor(text_ids[run["text"]][run["segment"]])
        return voice.prefix(voice.conditioning(latents, emotion_of(run, golden)), ids)

    return make


def options(run: dict[str, Any]) -> GenerationConfig:
    assert run["decode"] in ("greedy", "beam_search")
    return GenerationConfig(
        do_sample=False,
        num_beams=run.get("num_beams", 1),
        length_penalty=run.get("length_penalty", 0.0),
        repetition_penalty=run["repetition_penalty"],
        max_mel_tokens=run["steps"],
    )


def assert_codes(generation: Generation, expected: np.ndarray, limit: int, stop: int) -> None:
    row = generation.codes.tolist() + ([] if generation.hit_limit else [stop])
    assert row == expected[0].tolist()
    assert generation.hit_limit == (len(row) == limit and row[-1] != stop)


@pytest.mark.parametrize("run", RUNS, ids=[run["array"] for run in RUNS])
def test_run_of_the_plan(voice: UnifiedVoice, golden: Golden, prefix_of: Any, run: dict[str, Any]) -> None:
    generation = generate(voice, prefix_of(run), options(run))
    assert_codes(generation, golden[run["array"]], run["steps"], voice.config.stop_mel_token)
    if "score" in run:
        assert abs(generation.score - float(golden[run["score"]][0])) < 1e-3
    if "first_logits" in run:
        logits = voice.logits(voice.prefill(prefix_of(run)).hidden)
        assert golden_error(logits, golden[run["first_logits"]]) < 1e-5


def collect_logits(voice: UnifiedVoice, prefix: Tensor, config: GenerationConfig, monkeypatch: Any) -> list[Tensor]:
    seen: list[Tensor] = []
    accept = decoders.SingleDecoder.accept
    monkeypatch.setattr(
        decoders.SingleDecoder,
        "accept",
        lambda self, logits, states: (seen.append(logits), accept(self, logits, states)),
    )
    generate(voice, prefix, config)
    return seen


def main_run(penalty: float) -> dict[str, Any]:
    plan = json.loads(PLAN.read_text())
    return {"text": plan["main_text"], "segment": 0, "emotion": plan["main_emotion"], "decode": "greedy",
            "repetition_penalty": penalty, "steps": 40}  # fmt: skip


def test_step_logits(voice: UnifiedVoice, golden: Golden, prefix_of: Any, monkeypatch: Any) -> None:
    run = main_run(1.0)
    logits = collect_logits(voice, prefix_of(run), options(run), monkeypatch)
    assert relative_l2(logits[0], golden["gpt_logits_step0"]) < 1e-5
    assert relative_l2(logits[1], golden["gpt_logits_step1"]) < 1e-5
    assert relative_l2(logits[-1], golden["gpt_logits_last"]) < 1e-5
    best = torch.cat(logits).topk(2).values
    assert np.allclose(best[:, 0] - best[:, 1], golden["greedy_rp1_margin"], atol=1e-3)


def test_step_logits_with_penalty(voice: UnifiedVoice, golden: Golden, prefix_of: Any, monkeypatch: Any) -> None:
    run = main_run(10.0)
    logits = collect_logits(voice, prefix_of(run), options(run), monkeypatch)
    assert relative_l2(torch.cat([logits[i] for i in (0, 1, 2, 20, 39)]), golden["greedy_rp10_logits"]) < 1e-5


@pytest.mark.parametrize("beams", [1, 3])
def test_sampled_run(voice: UnifiedVoice, golden: Golden, prefix_of: Any, monkeypatch: Any, beams: int) -> None:
    processed: list[Tensor] = []
    scores = decoders._History.scores

    def spy(self: Any, values: Tensor, new_tokens: int) -> Tensor:
        processed.append(scores(self, values, new_tokens))
        return processed[-1]

    monkeypatch.setattr(decoders._History, "scores", spy)
    expected = golden[f"sample_nb{beams}_codes"]
    config = GenerationConfig(num_beams=beams, max_mel_tokens=expected.shape[1], **SAMPLED)
    generation = generate(voice, prefix_of(main_run(10.0)), config, torch.Generator().manual_seed(SEED))
    for step in (0, 1):
        recorded = golden[f"sample_nb{beams}_scores{step}"]
        whole = torch.full(tuple(recorded["shape"].tolist()), float("-inf"))
        whole[recorded["row"], recorded["token"]] = torch.from_numpy(recorded["value"])
        finite = torch.isfinite(whole)
        assert torch.equal(torch.isfinite(processed[step]), finite)
        assert relative_l2(processed[step][finite], whole[finite]) < 1e-5
    # Equal draws as well: torch's generator gives one stream, whether global or our own.
    assert_codes(generation, expected, expected.shape[1], voice.config.stop_mel_token)


def test_the_global_generator_is_left_alone(voice: UnifiedVoice, prefix_of: Any) -> None:
    state = torch.get_rng_state()
    generate(voice, prefix_of(main_run(10.0)), GenerationConfig(num_beams=3, max_mel_tokens=3))
    assert torch.equal(torch.get_rng_state(), state)


def test_requests_in_one_batch_equal_single_ones(voice: UnifiedVoice, golden: Golden, prefix_of: Any) -> None:
    """Different texts, beams and lengths in one batch; a request that joins late."""
    runs = [run for run in RUNS if run["array"] in ("greedy_rp10_zh_alpha0.6", "beam3_rp10", "beam3_rp1")]
    assert len(runs) == 3
    waiting = [Request(voice, prefix_of(run), options(run)) for run in runs]
    active, steps, finished = waiting[:2], 0, {}
    while active:
        advance(voice, active)
        steps += 1
        if steps == 4:
            active = [*active, waiting[2]]
        for request in [request for request in active if request.finished]:
            finished[id(request)] = request.result()
            active = [other for other in active if other is not request]
    for run, request in zip(runs, waiting, strict=True):
        assert_codes(finished[id(request)], golden[run["array"]], run["steps"], voice.config.stop_mel_token)


def test_plan_is_the_one_read(reference: Path) -> None:
    assert PLAN.parent.parent == reference
    assert RUNS
