"""Decoding in bursts over static buffers gives what decoding step by step gives; here without graphs, on the CPU."""

from __future__ import annotations

import dataclasses
import gc
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.errors import GenerationError
from indextts2.models.gpt import bursts as bursts_module
from indextts2.models.gpt.bursts import BURST, SMALLEST_ROWS, Bursts
from indextts2.models.gpt.generation import Generation, Request, generate
from indextts2.models.gpt.sampling import draw, race
from indextts2.models.gpt.unified_voice import UnifiedVoice
from tests.conftest import relative_l2
from tests.models.gpt.conftest import TINY, make_tiny
from tests.models.gpt.test_unified_voice import tiny_prefix
from tests.models.recorded import DevicesSeen

OPTIONS = GenerationConfig(max_mel_tokens=40, repetition_penalty=1.5, top_k=20, num_beams=1, temperature=1.5)
VARIANTS: list[dict[str, Any]] = [
    {}, {"do_sample": False}, {"min_new_tokens": 30}, {"top_k": 0, "top_p": 0.7}, {"typical_sampling": True},
    {"min_p": 0.1, "temperature": 0.7}, {"max_mel_tokens": 1}, {"max_mel_tokens": BURST + 1},
]  # fmt: skip


@pytest.fixture(scope="module", params=[True, False], ids=["skipping", "contiguous"])
def model(request: pytest.FixtureRequest) -> UnifiedVoice:
    return make_tiny(dataclasses.replace(TINY, skips_first_mel_position=request.param)).requires_grad_(False)


def prefix_of(model: UnifiedVoice, seed: int) -> Tensor:
    return tiny_prefix(model, [3 + seed % 5, 7, 5][: 1 + seed % 3]).detach()


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def check_same(found: Generation, expected: Generation) -> None:
    assert found.codes.tolist() == expected.codes.tolist()
    assert found.hit_limit == expected.hit_limit
    assert found.score == pytest.approx(expected.score, rel=1e-4)
    assert (found.latents is None) == (expected.latents is None)
    if found.latents is not None and expected.latents is not None:
        assert relative_l2(found.latents, expected.latents) < 1e-5


def run_alone(bursts: Bursts, request: Request) -> Generation:
    while not request.finished:
        assert bursts.advance([request]) == [None]
    return request.result()


@pytest.mark.parametrize("beams", [1, 2, 3])
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ",".join(changes) or "sampled")
def test_one_request(model: UnifiedVoice, beams: int, changes: dict[str, Any]) -> None:
    bursts, options = Bursts(model), dataclasses.replace(OPTIONS, num_beams=beams, **changes)
    for seed in range(4):
        generators = seeded(seed), seeded(seed)
        try:
            expected = generate(model, prefix_of(model, seed), options, generators[0])
        except GenerationError:
            continue  # stopped at once
        check_same(run_alone(bursts, Request(model, prefix_of(model, seed), options, generators[1])), expected)
        # What is drawn next does not depend on the surplus of the last burst.
        assert torch.equal(*(torch.rand(4, generator=generator) for generator in generators))


def test_many_requests_that_come_rest_and_go(model: UnifiedVoice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Different options and lengths, joining late, resting now and then, over buffers that have to grow."""
    monkeypatch.setattr(bursts_module, "SMALLEST_ROWS", 16)
    bursts = Bursts(model)
    options = [
        dataclasses.replace(OPTIONS, **{"num_beams": 1 + n % 3, "min_new_tokens": 3 * n, **VARIANTS[n % 3]})
        for n in range(12)
    ]
    expected = [generate(model, prefix_of(model, n), o, seeded(n)) for n, o in enumerate(options)]
    requests = [Request(model, prefix_of(model, n), o, seeded(n)) for n, o in enumerate(options)]
    rounds = 0
    while any(not request.finished for request in requests):
        here = [r for n, r in enumerate(requests) if not r.finished and n <= 2 * rounds and (n + rounds) % 4]
        assert bursts.advance(here) == [None] * len(here)
        rounds += 1
    for request, one in zip(requests, expected, strict=True):
        check_same(request.result(), one)
    assert all(not batch.seats and batch.buffers.rows > 16 for batch in bursts._batches.values())


def test_a_resting_slot_is_left_alone(model: UnifiedVoice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows at which it rests; with some it has filled the buffers."""
    monkeypatch.setattr(bursts_module, "SMALLEST_ROWS", 1)
    options = dataclasses.replace(OPTIONS, num_beams=2, min_new_tokens=40)
    short = dataclasses.replace(options, min_new_tokens=9, max_mel_tokens=9)
    for text in range(1, 17):
        prefix = tiny_prefix(model, [4] * text).detach()
        bursts, resting = Bursts(model), Request(model, prefix, options, seeded(1))
        bursts.advance([resting])
        run_alone(bursts, Request(model, prefix_of(model, 0), short, seeded(0)))
        check_same(run_alone(bursts, resting), generate(model, prefix, options, seeded(1)))


def test_codes_settle_on_the_way(model: UnifiedVoice) -> None:
    request = Request(model, prefix_of(model, 0), dataclasses.replace(OPTIONS, min_new_tokens=40), seeded(0))
    bursts, taken = Bursts(model), []
    while not request.finished:
        bursts.advance([request])
        taken.append(len(request.take_settled()))
    assert taken[0] == 1  # the codes of a burst come one call later
    assert set(taken[1:-1]) == {BURST}


def test_slots_are_used_again(model: UnifiedVoice) -> None:
    bursts = Bursts(model)
    for n in range(3):
        forgotten = Request(model, prefix_of(model, n), dataclasses.replace(OPTIONS, min_new_tokens=40), seeded(n))
        bursts.advance([forgotten])
        assert [seat.slot for seat in bursts._batches[1].seats.values()] == [0]
        del forgotten
        gc.collect()
    assert bursts._batches[1].buffers.slots == 1


def test_scores_that_break_end_the_request_and_leave_nothing_behind(model: UnifiedVoice) -> None:
    bursts = Bursts(model)
    request = Request(model, prefix_of(model, 0), OPTIONS, seeded(0))
    request.prompt.cache.keys[0][:] = float("nan")
    errors: list[Exception | None] = [None]
    while errors == [None]:
        errors = bursts.advance([request])
    assert isinstance(errors[0], GenerationError) and "score nan" in str(errors[0])
    expected = generate(model, prefix_of(model, 1), OPTIONS, seeded(1))
    check_same(run_alone(bursts, Request(model, prefix_of(model, 1), OPTIONS, seeded(1))), expected)


def test_a_burst_that_cannot_be_launched_ends_its_requests_only(
    model: UnifiedVoice, monkeypatch: pytest.MonkeyPatch
) -> None:
    bursts, step = Bursts(model), bursts_module._Batch._step
    wanted = [dataclasses.replace(OPTIONS, min_new_tokens=20, num_beams=beams) for beams in (1, 2, 2)]
    requests = [Request(model, prefix_of(model, n), options, seeded(n)) for n, options in enumerate(wanted)]

    def failing(batch: Any, options: GenerationConfig, *sizes: int) -> None:
        if options.num_beams == 2:
            raise RuntimeError("out of memory")
        step(batch, options, *sizes)

    monkeypatch.setattr(bursts_module._Batch, "_step", failing)
    assert [str(error) for error in bursts.advance(requests)] == ["None", "out of memory", "out of memory"]
    assert not bursts._batches[2].seats
    monkeypatch.undo()
    for n in (0, 1):
        request = requests[0] if n == 0 else Request(model, prefix_of(model, n), wanted[n], seeded(n))
        check_same(run_alone(bursts, request), generate(model, prefix_of(model, n), wanted[n], seeded(n)))


def test_warming_up_makes_room_and_changes_nothing(model: UnifiedVoice) -> None:
    bursts = Bursts(model)
    bursts.warm_up(OPTIONS, slots=3, rows=SMALLEST_ROWS + 1)
    buffers = bursts._batches[1].buffers
    assert (buffers.slots, buffers.rows) == (4, 2 * SMALLEST_ROWS)
    expected = generate(model, prefix_of(model, 1), OPTIONS, seeded(1))
    check_same(run_alone(bursts, Request(model, prefix_of(model, 1), OPTIONS, seeded(1))), expected)
    assert bursts._batches[1].buffers is buffers


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("changes", VARIANTS, ids=lambda changes: ",".join(changes) or "sampled")
def test_a_step_can_be_recorded(beams: int, changes: dict[str, Any]) -> None:
    """On tensors without values: it depends on none of them, and touches nothing that lies on the CPU."""
    options = dataclasses.replace(OPTIONS, num_beams=beams, **changes)
    with torch.inference_mode():
        with torch.device("meta"):
            model = UnifiedVoice(dataclasses.replace(TINY, skips_first_mel_position=False)).requires_grad_(False)
        batch = bursts_module._Batch(model, beams)
        with DevicesSeen() as seen:
            batch._step(options, 1, SMALLEST_ROWS)
    assert seen.devices == {"meta"}


@pytest.mark.parametrize("count", [1, 6])
def test_a_race_draws_what_multinomial_draws(count: int) -> None:
    scores = 3 * torch.randn(300, generator=seeded(0))
    for seed in range(20):
        waits = torch.empty(1, 300).exponential_(generator=seeded(seed))
        found = race(scores.softmax(dim=-1)[None], waits, count)[0]
        assert torch.equal(found, draw(scores, count, seeded(seed))[0])


def test_a_cpu_decodes_step_by_step(model: UnifiedVoice) -> None:
    assert model.bursts is None
