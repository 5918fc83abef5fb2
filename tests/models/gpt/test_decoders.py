"""Bookkeeping of beams with a table in place of the network."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.errors import GenerationError
from indextts2.models.gpt.decoders import (
    BeamDecoder,
    Decoder,
    Hypotheses,
    Node,
    Outcome,
    SingleDecoder,
    common_ancestor,
    make_decoder,
    path,
)
from tests.models.gpt.conftest import TINY

CODES, START, STOP = 6, 6, 7
GPT = dataclasses.replace(TINY, number_mel_codes=8, start_mel_token=START, stop_mel_token=STOP)
Table = Callable[[tuple[int, ...]], Tensor]


def options(**changes: Any) -> GenerationConfig:
    neutral: dict[str, Any] = {
        "do_sample": False,
        "num_beams": 3,
        "repetition_penalty": 1.0,
        "max_mel_tokens": 5,
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
    }
    return GenerationConfig(**{**neutral, **changes})


def codes_of(node: Node | None) -> tuple[int, ...]:
    return tuple(n.code for n in path(node))


def probabilities(**given: float) -> Tensor:
    """Logits of a distribution: `c3=0.5, stop=0.2`; what is left is spread over the other codes."""
    row = torch.zeros(8)
    for name, value in given.items():
        row[STOP if name == "stop" else int(name[1:])] = value
    others = (row == 0).nonzero().flatten()
    row[others] = max(1 - sum(given.values()), 1e-6) / len(others)
    return row.log()


def constant(row: Tensor) -> Table:
    return lambda sequence: row


def decode(table: Table, config: GenerationConfig, seed: int = 0) -> tuple[Outcome, Decoder, list[tuple[int, ...]]]:
    """Run a decoder with `table` (sequence -> logits); also returns the settled codes after each step."""
    decoder = make_decoder(config, GPT, torch.Generator().manual_seed(seed))
    histories: list[tuple[int, ...]] = [()]
    settled = []
    while True:
        decoder.accept(torch.stack([table(history) for history in histories]), None)
        settled.append(codes_of(decoder.settled()))
        if decoder.finished:
            return decoder.outcome(), decoder, settled
        rows = histories * len(decoder.parents) if len(histories) == 1 else histories
        histories = [(*rows[p], code) for p, code in zip(decoder.parents, decoder.codes, strict=True)]


# An independent statement of the search: whole sequences in lists, nothing shared.


def plain_beam_search(table: Table, config: GenerationConfig) -> tuple[tuple[int, ...], float, bool]:
    beams, limit = config.num_beams, config.max_mel_tokens
    running = [((), 0.0)] + [((), -1e9)] * (beams - 1)
    stored: list[tuple[float, tuple[int, ...]]] = []
    for n in range(1, limit + 1):
        candidates = []
        for sequence, total in running:
            row = table(sequence).log_softmax(0).clone()
            for seen in {1, START, *sequence}:
                row[seen] *= config.repetition_penalty
            row[START] = -math.inf
            if n <= config.min_new_tokens:
                row[STOP] = -math.inf
            candidates += [(float(torch.tensor(total) + s), sequence, code) for code, s in enumerate(row)]
        candidates = sorted(candidates, key=lambda c: -c[0])[: 2 * beams]
        running = []
        for rank, (total, sequence, code) in enumerate(candidates):
            if len(running) == beams:
                break
            if code != STOP:
                running.append(((*sequence, code), total))
            elif rank < beams:
                score = total / n**config.length_penalty
                if len(stored) < beams or score > min(stored)[0]:
                    stored = sorted([*stored, (score, sequence)])[-beams:]
        if len(stored) == beams and min(stored)[0] >= candidates[0][0] / n**config.length_penalty:
            break
    else:
        for sequence, total in running:
            stored.append((total / limit**config.length_penalty, sequence))
    score, sequence = max(stored)
    return sequence, score, len(sequence) == limit


@pytest.mark.parametrize("length_penalty", [0.0, 1.0, -0.5])
@pytest.mark.parametrize("beams", [2, 3, 5])
def test_search_equals_the_plain_one(beams: int, length_penalty: float) -> None:
    for seed in range(30):

        def table(sequence: tuple[int, ...], seed: int = seed) -> Tensor:
            rng = random.Random(f"{seed} {sequence}")
            row = torch.tensor([rng.gauss(0, 2) for _ in range(8)])
            row[STOP] += len(sequence) - 2
            return row

        config = options(
            num_beams=beams,
            length_penalty=length_penalty,
            max_mel_tokens=1 + seed % 7,
            repetition_penalty=1.0 + seed % 3,
            min_new_tokens=1 if seed % 5 == 4 else 0,
        )
        codes, score, hit_limit = plain_beam_search(table, config)
        outcome, _, settled = decode(table, config)
        assert codes_of(outcome.node) == codes
        assert outcome.score == pytest.approx(score, rel=1e-5)
        assert outcome.hit_limit == hit_limit
        # What was called settled at any time is part of the result, and it only grows.
        for earlier, later in zip(settled, [*settled[1:], codes], strict=True):
            assert later[: len(earlier)] == earlier


def test_stop_at_rank_0_is_stored_and_the_others_run_on() -> None:
    def table(sequence: tuple[int, ...]) -> Tensor:
        if not sequence:
            return probabilities(stop=0.5, c0=0.2, c2=0.15, c3=0.1)
        return probabilities(**{f"c{sequence[-1]}": 0.9, "stop": 0.001})

    config = options(max_mel_tokens=2)
    decoder = BeamDecoder(config, GPT, torch.Generator())
    decoder.accept(table(())[None], None)
    assert decoder.codes == [0, 2, 3]
    assert decoder.parents == [0, 0, 0]
    outcome, _, _ = decode(table, config)
    assert (codes_of(outcome.node), outcome.hit_limit) == ((), False)
    assert outcome.score == pytest.approx(math.log(0.5), rel=1e-4)


def rank_table(rank: int) -> Table:
    """The stop token at the given rank of the first step; later codes repeat and never stop."""
    names = ["c0", "c2", "c3", "c4", "c5"]
    names.insert(rank, "stop")

    def table(sequence: tuple[int, ...]) -> Tensor:
        if not sequence:
            return probabilities(**dict(zip(names, [0.3, 0.2, 0.18, 0.14, 0.1, 0.07], strict=True)))
        return probabilities(**{f"c{sequence[-1]}": 0.3, "stop": 1e-9})

    return table


def test_stop_at_rank_2_counts_with_three_beams() -> None:
    outcome, _, _ = decode(rank_table(2), options(max_mel_tokens=3))
    assert codes_of(outcome.node) == ()  # 0.18 beats 0.3 * 0.3 * 0.3


def test_stop_at_rank_3_is_ignored_with_three_beams() -> None:
    outcome, _, _ = decode(rank_table(3), options(max_mel_tokens=3))
    assert codes_of(outcome.node) == (0, 0, 0)
    assert outcome.hit_limit


def test_limit_returns_the_best_running_beam() -> None:
    table = constant(probabilities(c4=0.6, c2=0.3, stop=1e-9))
    outcome, decoder, _ = decode(table, options(max_mel_tokens=4))
    assert codes_of(outcome.node) == (4, 4, 4, 4)
    assert outcome.hit_limit
    assert decoder.new_tokens == 4


def test_ends_as_soon_as_nothing_can_win() -> None:
    def table(sequence: tuple[int, ...]) -> Tensor:
        return probabilities(stop=0.9, c0=0.05) if sequence else probabilities(c0=0.5, c2=0.3, c3=0.15, stop=1e-9)

    outcome, decoder, settled = decode(table, options(max_mel_tokens=50))
    assert codes_of(outcome.node) == (0,)
    assert decoder.new_tokens == 3
    assert settled[0] == ()


def test_equal_scores_prefer_the_later() -> None:
    hypotheses = Hypotheses(3, 0.0)
    first, second = Node.after(None, 1, None), Node.after(None, 2, None)
    hypotheses.add(first, -1.0, 1)
    hypotheses.add(second, -1.0, 1)
    assert hypotheses.best().node is second


def test_hypotheses_keep_the_best() -> None:
    hypotheses = Hypotheses(2, 0.0)
    nodes = [Node.after(None, code, None) for code in range(4)]
    assert not hypotheses.unbeatable(-100.0, 1)
    for node, total in zip(nodes, (-3.0, -1.0, -2.0, -5.0), strict=True):
        hypotheses.add(node, total, 7)
    assert {h.score for h in hypotheses} == {-1.0, -2.0}
    assert hypotheses.unbeatable(-2.0, 9)
    assert not hypotheses.unbeatable(-1.9, 9)


def test_length_penalty_divides_by_the_length_with_stop_token() -> None:
    hypotheses = Hypotheses(1, 1.0)
    hypotheses.add(None, -6.0, 3)
    assert hypotheses.best().score == -2.0


def test_code_1_is_penalised_from_the_first_step() -> None:
    row = probabilities(c1=0.6, c4=0.3)
    outcome, _, _ = decode(constant(row), options(repetition_penalty=10.0, max_mel_tokens=1))
    assert codes_of(outcome.node) == (4,)  # 0.6 ** 10 is less than 0.3
    assert outcome.score == pytest.approx(math.log(0.3), rel=1e-5)


def test_history_follows_its_beam() -> None:
    """Two beams swap; each must penalise its own codes."""
    config = options(num_beams=2, repetition_penalty=10.0, max_mel_tokens=2)

    def table(sequence: tuple[int, ...]) -> Tensor:
        if not sequence:
            return probabilities(c2=0.5, c3=0.45)
        return probabilities(c2=0.5, c3=0.45) if sequence[0] == 3 else probabilities(c2=0.9, c3=0.05)

    outcome, _, _ = decode(table, config)
    assert codes_of(outcome.node) == (3, 2)  # 0.45 * 0.5 beats 0.5 * 0.9 ** 10 and 0.5 * 0.05


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_the_start_code_is_never_chosen(beams: int, do_sample: bool) -> None:
    table = constant(torch.full((8,), -2.0).index_fill(0, torch.tensor([START]), 5.0))
    for seed in range(20):
        outcome, _, _ = decode(table, options(num_beams=beams, do_sample=do_sample), seed)
        assert START not in codes_of(outcome.node)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("do_sample", [False, True])
def test_nan_is_an_error(beams: int, do_sample: bool) -> None:
    with pytest.raises(GenerationError, match="step 0"):
        decode(constant(torch.full((8,), math.nan)), options(num_beams=beams, do_sample=do_sample))


def test_only_the_start_code_left_is_an_error() -> None:
    table = constant(torch.zeros(8).index_fill(0, torch.tensor([START]), 50.0))
    with pytest.raises(GenerationError):
        decode(table, options(num_beams=1, do_sample=True, top_k=1))


@pytest.mark.parametrize("seed", range(10))
def test_fillers_of_a_narrow_draw_die_out(seed: int) -> None:
    """Top-p leaves two candidates for six draws; the fillers never win and never stop a sequence."""
    table = constant(probabilities(c2=0.6, c4=0.39, stop=1e-9))
    outcome, _, settled = decode(table, options(do_sample=True, top_p=0.5, max_mel_tokens=6), seed)
    assert set(codes_of(outcome.node)) <= {2, 4}
    assert outcome.hit_limit
    assert outcome.score > -100
    assert settled[-1] == codes_of(outcome.node)[: len(settled[-1])]


def test_beam_sampling_distribution_of_the_first_draw() -> None:
    """With B = 2 the best of four draws without replacement is often but not always the most probable code."""
    firsts = []
    for seed in range(300):
        decoder = BeamDecoder(options(num_beams=2, do_sample=True), GPT, torch.Generator().manual_seed(seed))
        decoder.accept(torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -9.0, -9.0])[None], None)
        firsts.append(decoder.codes[0])
        assert decoder.codes == sorted(decoder.codes)  # ordered by score
    assert 0.75 < firsts.count(0) / 300 < 1.0


def test_single_stops() -> None:
    def table(sequence: tuple[int, ...]) -> Tensor:
        return probabilities(stop=0.9) if len(sequence) == 2 else probabilities(c3=0.9)

    outcome, decoder, settled = decode(table, options(num_beams=1))
    assert isinstance(decoder, SingleDecoder)
    assert (codes_of(outcome.node), outcome.hit_limit) == ((3, 3), False)
    assert settled == [(3,), (3, 3), (3, 3)]
    # The start code (0.1 / 7) cannot be chosen, and what is left is renormalised.
    assert outcome.score == pytest.approx(3 * math.log(0.9 / (1 - 0.1 / 7)), rel=1e-4)
    outcome, _, _ = decode(table, options(num_beams=1, max_mel_tokens=2))
    assert (codes_of(outcome.node), outcome.hit_limit) == ((3, 3), True)


def test_common_ancestor() -> None:
    root = Node.after(None, 1, None)
    left, right = Node.after(root, 2, None), Node.after(root, 3, None)
    deep = Node.after(Node.after(left, 4, None), 5, None)
    assert common_ancestor([deep, right]) is root
    assert common_ancestor([deep, left]) is left
    assert common_ancestor([deep]) is deep
    assert common_ancestor([deep, None]) is None
    assert common_ancestor([deep, Node.after(None, 1, None)]) is None
    assert codes_of(deep) == (1, 2, 4, 5)
    assert [node.code for node in path(deep, 2)] == [4, 5]
