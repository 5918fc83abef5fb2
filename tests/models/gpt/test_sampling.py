"""Score processors on numbers worked out by hand, and against plain-Python versions on random ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.models.gpt import sampling

INF = float("inf")


def logs(*probabilities: float) -> Tensor:
    return torch.tensor([probabilities]).log()


def kept(scores: Tensor) -> list[list[int]]:
    return [row.isfinite().nonzero().flatten().tolist() for row in scores]


def test_repetition_penalty_counts_every_id_once() -> None:
    scores = torch.tensor([[2.0, -2.0, 0.0, 3.0]])
    seen = torch.tensor([[True, True, True, False]])
    assert sampling.repetition_penalty(scores, seen, 10.0).tolist() == [[pytest.approx(0.2), -20.0, 0.0, 3.0]]
    assert sampling.repetition_penalty(scores, seen, 1.0) is scores


def test_forbid() -> None:
    assert sampling.forbid(torch.zeros(1, 4), 1, 3).tolist() == [[0.0, -INF, -INF, 0.0]]


def test_top_k_keeps_ties() -> None:
    scores = torch.tensor([[1.0, 3.0, 2.0, 2.0, 0.0]])
    assert kept(sampling.top_k(scores, 2, 1)) == [[1, 2, 3]]
    assert kept(sampling.top_k(scores, 1, 1)) == [[1]]
    assert kept(sampling.top_k(scores, 1, 2)) == [[1, 2, 3]]
    assert kept(sampling.top_k(scores, 99, 1)) == [[0, 1, 2, 3, 4]]


def test_top_p() -> None:
    scores = logs(0.5, 0.05, 0.3, 0.15)
    assert kept(sampling.top_p(scores, 0.75, 1)) == [[0, 2]]
    assert kept(sampling.top_p(scores, 0.81, 1)) == [[0, 2, 3]]
    assert kept(sampling.top_p(scores, 0.1, 1)) == [[0]]
    assert kept(sampling.top_p(scores, 0.1, 2)) == [[0, 2]]
    assert sampling.top_p(scores, 1.0, 1) is scores


def test_top_p_renormalises_what_top_k_left() -> None:
    scores = torch.tensor([[math.log(0.5), -INF, math.log(0.3), -INF, math.log(0.2)], [0.0, -INF, -INF, -INF, -INF]])
    filtered = sampling.top_p(scores, 0.7, 1)
    assert kept(filtered) == [[0, 2], [0]]
    assert filtered[0, 2] == scores[0, 2]


def plain_top_p(scores: np.ndarray, p: float, keep: int) -> list[int]:
    order = np.argsort(scores)
    probabilities = np.exp(scores[order] - scores.max())
    cumulative = np.cumsum(probabilities / probabilities.sum())
    removed = cumulative <= 1 - p
    removed[-keep:] = False
    return sorted(order[~removed].tolist())


@pytest.mark.parametrize("p", [0.05, 0.5, 0.8, 0.99])
@pytest.mark.parametrize("keep", [1, 2])
def test_top_p_equals_the_definition(p: float, keep: int) -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scores = rng.standard_normal(50) * 3
        assert kept(sampling.top_p(torch.tensor(scores)[None], p, keep)) == [plain_top_p(scores, p, keep)]


def test_min_p() -> None:
    scores = logs(0.5, 0.04, 0.26, 0.2)
    assert kept(sampling.min_p(scores, 0.5, 1)) == [[0, 2]]
    assert kept(sampling.min_p(scores, 0.9, 1)) == [[0]]
    assert kept(sampling.min_p(scores, 0.9, 2)) == [[0, 2]]
    assert sampling.min_p(scores, 0.0, 1) is scores


def plain_typical(probabilities: np.ndarray, mass: float) -> list[int]:
    surprise = -np.log(probabilities)
    distance = np.abs(surprise - (probabilities * surprise).sum())
    order = np.argsort(distance)
    count = int(np.searchsorted(np.cumsum(probabilities[order]), mass)) + 1
    return sorted(order[:count].tolist())


@pytest.mark.parametrize("mass", [0.1, 0.5, 0.9])
def test_typical_equals_the_definition(mass: float) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        probabilities = rng.dirichlet(np.full(30, 0.5)) + 1e-9
        probabilities /= probabilities.sum()
        assert kept(sampling.typical(torch.tensor(probabilities).log()[None], mass, 1)) == [
            plain_typical(probabilities, mass)
        ]


def test_typical_is_not_top_p() -> None:
    # Entropy 1.50: the most probable id (surprise 0.92) is farther from it than the four others (1.90).
    scores = logs(0.4, 0.15, 0.15, 0.15, 0.15)
    assert kept(sampling.typical(scores, 0.3, 1)) == [[1, 2, 3, 4]]  # equal distances stay together
    assert kept(sampling.typical(scores, 0.7, 1)) == [[0, 1, 2, 3, 4]]


def test_typical_with_a_forbidden_id() -> None:
    scores = torch.cat((logs(0.6, 0.4), torch.tensor([[-INF]])), dim=1)
    assert kept(sampling.typical(scores, 0.99, 1)) == [[0, 1]]


def run(scores: Tensor, seen: Tensor | None = None, new_tokens: int = 0, **options: object) -> Tensor:
    neutral: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0, "num_beams": 1}
    config = GenerationConfig(**{**neutral, **options})
    seen = torch.zeros_like(scores, dtype=torch.bool) if seen is None else seen
    return sampling.process(scores, seen, config, new_tokens, stop_token=scores.shape[1] - 1)


def test_neutral_options_change_nothing() -> None:
    scores = torch.randn(2, 9)
    assert torch.equal(run(scores), scores)


def test_minimum_length_forbids_the_stop_token() -> None:
    scores = torch.zeros(1, 4)
    assert kept(run(scores, new_tokens=1, min_new_tokens=2)) == [[0, 1, 2]]
    assert kept(run(scores, new_tokens=2, min_new_tokens=2)) == [[0, 1, 2, 3]]


def test_typical_comes_before_temperature() -> None:
    # At temperature 0.2 the distribution is so sharp that typical sampling would keep only the first.
    scores = logs(0.4, 0.15, 0.15, 0.15, 0.15)
    assert kept(run(scores, typical_sampling=True, typical_mass=0.3, temperature=0.2)) == [[1, 2, 3, 4]]


def test_temperature_comes_before_top_p() -> None:
    scores = logs(0.5, 0.3, 0.2)
    assert kept(run(scores, top_p=0.75)) == [[0, 1]]
    assert kept(run(scores, top_p=0.75, temperature=0.3)) == [[0]]


def test_penalty_comes_first() -> None:
    scores, seen = torch.tensor([[4.0, 3.0, 2.0]]), torch.tensor([[True, False, False]])
    assert kept(run(scores, seen, repetition_penalty=10.0, top_k=1)) == [[1]]


def test_beams_keep_two() -> None:
    scores = logs(0.9, 0.06, 0.04)
    assert kept(run(scores, num_beams=3, top_k=1, top_p=0.1, min_p=0.9)) == [[0, 1]]
    assert kept(run(scores, num_beams=1, top_k=1, top_p=0.1, min_p=0.9)) == [[0]]


def test_searching_skips_the_warpers() -> None:
    scores, seen = torch.tensor([[4.0, 3.0, 2.0]]), torch.tensor([[True, False, False]])
    processed = run(scores, seen, do_sample=False, repetition_penalty=2.0, temperature=0.5, top_k=1, top_p=0.1)
    assert processed.tolist() == [[2.0, 3.0, 2.0]]


def test_draw_follows_the_distribution() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = logs(0.7, 0.2, 0.1)[0]
    draws = torch.stack([sampling.draw(scores, 1, generator)[0] for _ in range(4000)])
    frequency = draws.flatten().bincount(minlength=3) / 4000
    assert torch.allclose(frequency, torch.tensor([0.7, 0.2, 0.1]), atol=0.03)


def test_draw_fills_up_with_impossible_ones() -> None:
    index, probability = sampling.draw(torch.tensor([0.0, -INF, -INF, 0.0]), 3, torch.Generator().manual_seed(0))
    assert len(set(index.tolist())) == 3
    assert sorted(probability.tolist()) == [0.0, 0.5, 0.5]
