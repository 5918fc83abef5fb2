"""Generation as callers see it: seeds, cancellation, streaming, threads, limits, contiguous positions."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.errors import Cancelled, GenerationError
from indextts2.models.gpt.generation import Generation, Request, advance, feed, generate, iterate_codes
from indextts2.models.gpt.unified_voice import LatentStream, UnifiedVoice
from tests.conftest import relative_l2
from tests.models.gpt.conftest import TINY, make_tiny
from tests.models.gpt.test_unified_voice import tiny_prefix

OPTIONS = GenerationConfig(max_mel_tokens=25, repetition_penalty=1.5, top_k=20, num_beams=1, temperature=1.5)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def with_beams(beams: int, **changes: object) -> GenerationConfig:
    return dataclasses.replace(OPTIONS, num_beams=beams, **changes)


@pytest.fixture(scope="module")
def contiguous() -> UnifiedVoice:
    return make_tiny(dataclasses.replace(TINY, skips_first_mel_position=False))


@pytest.fixture(scope="module")
def prefix(tiny: UnifiedVoice) -> Tensor:
    return tiny_prefix(tiny, [3, 7, 5]).detach()


@pytest.mark.parametrize("beams", [1, 3])
def test_seeds(tiny: UnifiedVoice, prefix: Tensor, beams: int) -> None:
    first, again, other = (generate(tiny, prefix, with_beams(beams), seeded(seed)).codes.tolist() for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_no_generator_means_a_fresh_seed(tiny: UnifiedVoice, prefix: Tensor) -> None:
    torch.manual_seed(0)
    first = generate(tiny, prefix, OPTIONS).codes.tolist()
    torch.manual_seed(0)
    assert generate(tiny, prefix, OPTIONS).codes.tolist() != first


def test_top_k_1_is_greedy_whatever_the_seed(tiny: UnifiedVoice, prefix: Tensor) -> None:
    greedy = generate(tiny, prefix, with_beams(1, do_sample=False)).codes.tolist()
    for seed in range(3):
        assert generate(tiny, prefix, with_beams(1, top_k=1), seeded(seed)).codes.tolist() == greedy


def plain_greedy(model: UnifiedVoice, prefix: Tensor, first_position: int, steps: int) -> list[int]:
    """Without a cache: the whole sequence again for every code."""
    codes: list[int] = []
    for _ in range(steps):
        ids = torch.tensor([[model.config.start_mel_token, *codes]])
        positions = torch.tensor([[0, *range(first_position, first_position + len(codes))]])
        rows = torch.cat((prefix, model.embed_codes(ids, positions)), dim=1)
        logits = model.logits(model.final_norm(model.gpt(rows)))[0, -1]
        logits[model.config.start_mel_token] = -torch.inf
        codes.append(int(logits.argmax()))
        if codes[-1] == model.config.stop_mel_token:
            return codes[:-1]
    return codes


@pytest.mark.parametrize("skips", [True, False])
def test_greedy_equals_the_plain_loop(
    tiny: UnifiedVoice, contiguous: UnifiedVoice, prefix: Tensor, skips: bool
) -> None:
    model = tiny if skips else contiguous
    generation = generate(model, prefix, with_beams(1, do_sample=False, repetition_penalty=1.0))
    assert generation.codes.tolist() == plain_greedy(model, prefix, 2 if skips else 1, 25)
    assert generation.codes.dtype == torch.int64


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("do_sample", [True, False])
def test_decode_states_are_the_latents(contiguous: UnifiedVoice, prefix: Tensor, beams: int, do_sample: bool) -> None:
    for seed in range(4):
        generation = generate(contiguous, prefix, with_beams(beams, do_sample=do_sample), seeded(seed))
        assert generation.latents is not None
        second_pass = contiguous.latents(generation.prompt, generation.codes)
        assert relative_l2(generation.latents, second_pass) < 1e-5


def test_skipping_models_need_the_second_pass(tiny: UnifiedVoice, prefix: Tensor) -> None:
    generation = generate(tiny, prefix, OPTIONS, seeded(0))
    assert generation.latents is None
    latents = tiny.latents(generation.prompt, generation.codes)
    assert latents.shape == (1, len(generation.codes), TINY.model_dim)
    assert not latents.requires_grad


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_streamed_codes_are_the_result(tiny: UnifiedVoice, prefix: Tensor, beams: int) -> None:
    pieces_before_the_end = 0
    for seed in range(5):
        request = Request(tiny, prefix, with_beams(beams), seeded(seed))
        streamed: list[int] = []
        for piece in iterate_codes(tiny, request):
            assert piece
            streamed += piece
            pieces_before_the_end += not request.finished
        assert streamed == request.result().codes.tolist()
        heard: list[int] = []
        generate(tiny, prefix, with_beams(beams), seeded(seed), on_code=heard.append)
        assert heard == streamed
    assert pieces_before_the_end > 5


def test_latents_can_run_behind_the_decoder(tiny: UnifiedVoice, prefix: Tensor) -> None:
    request = Request(tiny, prefix, with_beams(3), seeded(2))
    stream = LatentStream.beside(tiny, request.prompt)
    pieces = [stream.extend(torch.tensor(piece)) for piece in iterate_codes(tiny, request)]
    result = request.result()
    assert relative_l2(torch.cat(pieces, dim=1), tiny.latents(result.prompt, result.codes)) < 1e-5


def test_cancelling(tiny: UnifiedVoice, prefix: Tensor) -> None:
    asked = 0

    def cancel() -> bool:
        nonlocal asked
        asked += 1
        return asked == 4

    heard: list[int] = []
    with pytest.raises(Cancelled, match="after 4 steps"):
        generate(tiny, prefix, with_beams(1, min_new_tokens=25), seeded(0), cancel, heard.append)
    assert len(heard) == 3


def test_minimum_and_limit(tiny: UnifiedVoice, prefix: Tensor) -> None:
    generation = generate(tiny, prefix, with_beams(3, min_new_tokens=25), seeded(0))
    assert len(generation.codes) == 25
    assert generation.hit_limit


@pytest.mark.parametrize("skips", [True, False])
def test_never_beyond_the_position_table(
    tiny: UnifiedVoice, contiguous: UnifiedVoice, prefix: Tensor, skips: bool
) -> None:
    model = tiny if skips else contiguous
    never_stops = make_tiny(model.config)
    never_stops.mel_head.bias.data[TINY.stop_mel_token] = -1e4
    generation = generate(never_stops, prefix, with_beams(1, max_mel_tokens=500), seeded(0))
    assert len(generation.codes) == TINY.mel_positions - skips
    assert generation.hit_limit
    assert never_stops.latents(generation.prompt, generation.codes).shape[1] == len(generation.codes)


def test_stopping_at_once_is_an_error(prefix: Tensor) -> None:
    model = make_tiny()
    model.mel_head.bias.data[TINY.stop_mel_token] = 1e3
    with pytest.raises(GenerationError, match="before the first code"):
        generate(model, prefix, OPTIONS, seeded(0))
    assert len(generate(model, prefix, with_beams(1, min_new_tokens=1), seeded(0)).codes) == 1


def test_damaged_weights_are_an_error(prefix: Tensor) -> None:
    model = make_tiny()
    model.mel_head.bias.data[0] = torch.nan
    with pytest.raises(GenerationError):
        generate(model, prefix, OPTIONS, seeded(0))


def run_in_threads(jobs: list[Callable[[], Generation]]) -> list[list[int]]:
    results: list[list[int]] = [[] for _ in jobs]

    def work(i: int) -> None:
        results[i] = jobs[i]().codes.tolist()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_threads_do_not_disturb_each_other(tiny: UnifiedVoice) -> None:
    prefixes = [tiny_prefix(tiny, text).detach() for text in ([3, 7, 5], [9, 2], [4, 4, 4, 4])]
    jobs = [
        lambda prefix=prefix, seed=seed: generate(tiny, prefix, with_beams(1 + seed % 3), seeded(seed))
        for seed, prefix in enumerate(prefixes)
    ]
    assert run_in_threads(jobs) == [job().codes.tolist() for job in jobs]


def test_batched_requests_equal_single_ones(tiny: UnifiedVoice) -> None:
    prefixes = [tiny_prefix(tiny, [3] * n).detach() for n in (1, 4, 9)]
    configs = [with_beams(1), with_beams(3), with_beams(2, max_mel_tokens=9)]
    pairs = list(zip(prefixes, configs, strict=True))
    alone = [generate(tiny, prefix, config, seeded(i)).codes.tolist() for i, (prefix, config) in enumerate(pairs)]
    requests = [Request(tiny, prefix, config, seeded(i)) for i, (prefix, config) in enumerate(pairs)]
    while running := [request for request in requests if not request.finished]:
        advance(tiny, running)
    assert [request.result().codes.tolist() for request in requests] == alone
    advance(tiny, [])


def test_more_rows_than_the_products_of_a_few_take_go_in_portions(
    tiny: UnifiedVoice, prefix: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, rows = tiny.step, []
    monkeypatch.setattr(tiny, "step", lambda codes, *rest: rows.append(len(codes)) or step(codes, *rest))
    requests = [Request(tiny, prefix, with_beams(beams), seeded(beams)) for beams in (16, 12, 5, 3, 1)]
    answers = feed(tiny, [request.feed() for request in requests])
    assert rows == [28, 9]
    assert [len(states) for states, _ in answers] == [16, 12, 5, 3, 1]


def test_what_fails_midway_may_be_tried_again(
    tiny: UnifiedVoice, prefix: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = [Request(tiny, prefix, with_beams(16), seeded(seed)) for seed in range(3)]
    feeds = [request.feed() for request in requests]
    step, calls = tiny.step, []

    def failing(*given: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return step(*given)

    monkeypatch.setattr(tiny, "step", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        feed(tiny, feeds)
    assert [request.prompt.cache.length for request in requests] == [request.prompt.rows for request in requests]
    untroubled = [Request(tiny, prefix, with_beams(16), seeded(seed)) for seed in range(3)]
    expected = feed(tiny, [request.feed() for request in untroubled])
    for (states, logits), (other_states, other_logits) in zip(feed(tiny, feeds), expected, strict=True):
        assert torch.equal(states, other_states)
        assert torch.equal(logits, other_logits)
    assert [request.prompt.cache.length for request in requests] == [r.prompt.rows + 16 for r in requests]


def test_half_precision_runs(prefix: Tensor) -> None:
    model = make_tiny().bfloat16()
    generation = generate(model, prefix.bfloat16(), with_beams(3), seeded(0))
    assert model.latents(generation.prompt, generation.codes).dtype == torch.bfloat16
