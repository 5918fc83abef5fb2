"""Rounded weights: how far they are from the exact ones, what they reach, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import pickle

import pytest
import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.errors import UsageError
from indextts2.models.gpt import quantised
from indextts2.models.gpt.generation import Request, advance, generate, iterate_codes
from indextts2.models.gpt.quantised import Int4Weight, Int8Weight, automatic_weights, check_weights, rounded
from indextts2.models.gpt.transformer import Conv1D
from indextts2.models.gpt.unified_voice import UnifiedVoice
from tests.conftest import relative_l2
from tests.models.gpt.conftest import TINY, make_tiny
from tests.models.gpt.test_unified_voice import tiny_prefix

KINDS = {"int8": 0.015, "int4": 0.13}  # with the bound of the relative error of one product
GREEDY = GenerationConfig(max_mel_tokens=20, num_beams=1, do_sample=False, repetition_penalty=1.0)

pytestmark = pytest.mark.skipif(
    not all(quantised.kernels_work(kind) for kind in KINDS), reason="this torch has no such kernels"
)


@pytest.fixture(scope="module")
def voice() -> UnifiedVoice:
    return make_tiny(TINY).requires_grad_(False)


@pytest.fixture(scope="module")
def prefix(voice: UnifiedVoice) -> Tensor:
    return tiny_prefix(voice, [3, 7, 5]).detach()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 3, 17])
@pytest.mark.parametrize("shape", [(96, 32), (64, 192), (514, 128)])
def test_a_product(kind: str, rows: int, shape: tuple[int, int]) -> None:
    outputs, inputs = shape
    weight, x, bias = torch.randn(outputs, inputs), torch.randn(rows, inputs), torch.randn(outputs)
    with torch.inference_mode():
        found = rounded(weight, kind)(x, bias)
    assert found.dtype is torch.float32
    assert relative_l2(found - bias, x @ weight.t()) < KINDS[kind]


def test_kernels_compute_what_the_rounded_weights_say() -> None:
    weight, x = torch.randn(48, 64), torch.randn(3, 64).bfloat16().float()
    int8 = Int8Weight(weight)
    unpacked = int8.weight.float() * int8.scale.float()[:, None]
    assert (unpacked - weight).abs().max() <= int8.scale.float().max()
    assert relative_l2(int8(x, torch.zeros(48)), x @ unpacked.t()) < 4e-3


def test_outputs_that_int4_cannot_have_are_int8() -> None:
    assert isinstance(rounded(torch.randn(48, 32), "int4"), Int4Weight)
    assert isinstance(rounded(torch.randn(50, 32), "int4"), Int8Weight)


def test_a_row_of_zeros() -> None:
    weight = torch.zeros(32, 32)
    for kind in KINDS:
        assert torch.equal(rounded(weight, kind)(torch.randn(2, 32), torch.ones(32)), torch.ones(2, 32))


@pytest.mark.parametrize("kind", KINDS)
def test_logits_of_a_step_stay_close(voice: UnifiedVoice, prefix: Tensor, kind: str) -> None:
    def logits(weights: str) -> Tensor:
        request = Request(voice, prefix, GREEDY, weights=weights)
        lane = request.feed().lane
        states = voice.step(torch.tensor([5]), torch.tensor([2]), [lane], weights)
        return voice.logits(states, weights)

    with torch.inference_mode():
        exact, found = logits("full"), logits(kind)
    assert not torch.equal(exact, found)
    assert torch.cosine_similarity(exact, found).item() > {"int8": 0.999, "int4": 0.95}[kind]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beams", [1, 3])
def test_generation(voice: UnifiedVoice, prefix: Tensor, kind: str, beams: int) -> None:
    config = dataclasses.replace(GREEDY, do_sample=True, num_beams=beams)

    def run() -> tuple[list[int], Tensor]:
        request = Request(voice, prefix, config, torch.Generator().manual_seed(3), kind)
        list(iterate_codes(voice, request))
        generation = request.result()
        return generation.codes.tolist(), voice.latents(generation.prompt, generation.codes)

    codes, latents = run()
    again, _ = run()
    assert codes == again and len(codes) <= 20
    assert latents.shape == (1, len(codes), TINY.model_dim) and torch.isfinite(latents).all()


def test_the_prefix_stays_exact(voice: UnifiedVoice, prefix: Tensor) -> None:
    exact, found = (Request(voice, prefix, GREEDY, weights=kind).prompt.hidden for kind in ("full", "int8"))
    assert torch.equal(exact, found)


def test_requests_of_several_kinds_decode_together(voice: UnifiedVoice, prefix: Tensor) -> None:
    kinds = ["int8", "full", "int4", "full"]
    requests = [Request(voice, prefix, GREEDY, weights=kind) for kind in kinds]
    while any(not request.finished for request in requests):
        advance(voice, [request for request in requests if not request.finished])
    found = [request.result().codes.tolist() for request in requests]
    assert found[1] == found[3] == generate(voice, prefix, GREEDY).codes.tolist()
    for index in (0, 2):
        alone = Request(voice, prefix, GREEDY, weights=kinds[index])
        list(iterate_codes(voice, alone))
        assert found[index] == alone.result().codes.tolist()


def test_rounded_copies_follow_the_weight() -> None:
    layer, x = Conv1D(32, 48).requires_grad_(False), torch.randn(2, 32)
    with torch.inference_mode():
        first = layer.step(x, "int8")
    layer.weight.mul_(2)
    with torch.inference_mode():
        assert relative_l2(layer.step(x, "int8"), 2 * first) < 1e-2
    layer.weight = torch.nn.Parameter(torch.zeros_like(layer.weight), requires_grad=False)
    with torch.inference_mode():
        assert torch.equal(layer.step(x, "int8"), layer.bias.expand(2, -1))


def test_many_rows_use_the_loaded_weights() -> None:
    layer, x = Conv1D(32, 48).requires_grad_(False), torch.randn(quantised.MOST_ROWS + 1, 32)
    with torch.inference_mode():
        assert torch.equal(layer.step(x, "int8"), layer(x))


def test_modules_with_rounded_copies_can_be_copied() -> None:
    layer, x = Conv1D(32, 48).requires_grad_(False), torch.randn(2, 32)
    with torch.inference_mode():
        expected = layer.step(x, "int8")
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other.step(x, "int8"), expected)
    assert set(layer.state_dict()) == {"weight", "bias"}


def test_what_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="is for CPUs"):
        check_weights("int8", torch.device("meta"), 64)
    with pytest.raises(UsageError, match="multiple of 32, not 40"):
        check_weights("int4", torch.device("cpu"), 40)
    monkeypatch.setattr(quantised, "kernels_work", lambda kind: False)
    with pytest.raises(UsageError, match="no working kernel"):
        check_weights("int8", torch.device("cpu"), 64)
    check_weights("full", torch.device("meta"), 40)


def test_a_torch_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch, "_weight_int8pack_mm")
    quantised.kernels_work.cache_clear()
    try:
        assert not quantised.kernels_work("int8")
    finally:
        quantised.kernels_work.cache_clear()


def test_automatic_weights() -> None:
    cpu = torch.device("cpu")
    assert automatic_weights(cpu, 1280, 24) == "int8"
    assert automatic_weights(cpu, 192, 5) == "full"  # they lie in the caches
    assert automatic_weights(torch.device("meta"), 1280, 24) == "full"
