"""The shared cache: beams by table instead of copies, squeezing, growth."""

from __future__ import annotations

import random

import torch

from indextts2.models.gpt import cache as cache_module
from indextts2.models.gpt.cache import KVCache, Lane
from indextts2.models.gpt.transformer import GPT2Stack
from tests.conftest import relative_l2

WIDTH = 16


def make_stack() -> GPT2Stack:
    torch.manual_seed(0)
    stack = GPT2Stack(WIDTH, 2, 2).requires_grad_(False)
    for parameter in stack.parameters():
        if parameter.ndim == 2:
            parameter.mul_(10)
    return stack


def check_random_beams(steps: int) -> KVCache:
    """Feed rows along random ancestries; each state must be that of a plain pass over the beam's own rows."""
    stack, rng = make_stack(), random.Random(5)
    prefix = torch.randn(7, WIDTH)
    cache = stack.new_cache(8)
    stack.extend(prefix, [Lane(cache, 7, causal=True)])
    histories: list[list[torch.Tensor]] = [[], [], []]
    for _ in range(steps):
        parents = [rng.randrange(3) for _ in range(3)]
        rows = torch.randn(3, WIDTH)
        histories = [[*histories[parent], row] for parent, row in zip(parents, rows, strict=True)]
        states = stack.extend(rows, [Lane(cache, 3, cache.branch(parents))])
    for history, state in zip(histories, states, strict=True):
        expected = stack(torch.cat((prefix, torch.stack(history)))[None])[0, -1]
        assert relative_l2(state, expected) < 1e-5
    return cache


def test_beams_see_their_own_past_only() -> None:
    cache = check_random_beams(12)
    assert cache.length == 7 + 3 * 12


def test_rows_of_dead_beams_are_squeezed_out() -> None:
    cache = check_random_beams(cache_module.DEAD_ROWS)
    # All three beams share an ancestor a few steps back, so about one row per step lives.
    assert cache.length < 7 + 3 * cache_module.DEAD_ROWS - cache_module.DEAD_ROWS


def test_a_single_beam_needs_no_mask() -> None:
    cache = make_stack().new_cache(4)
    assert cache.branch([0]) is None


def test_growth_keeps_what_is_held() -> None:
    stack, rows = make_stack(), torch.randn(40, WIDTH)
    small, large = stack.new_cache(1), stack.new_cache(64)
    for cache in (small, large):
        stack.extend(rows[:5], [Lane(cache, 5, causal=True)])
    for row in rows[5:, None]:
        a, b = (stack.extend(row, [Lane(cache, 1, cache.branch([0]))]) for cache in (small, large))
        assert relative_l2(a, b) < 1e-6
    assert relative_l2(a[0], stack(rows[None])[0, -1]) < 1e-5
    assert large.capacity == 64


def test_fork_is_independent() -> None:
    stack, rows = make_stack(), torch.randn(6, WIDTH)
    cache = stack.new_cache(16)
    stack.extend(rows[:3], [Lane(cache, 3, causal=True)])
    fork = cache.fork(2)
    stack.extend(rows[3:4], [Lane(fork, 1)])
    expected = stack(rows[[0, 1, 3]][None])[0, -1:]
    assert relative_l2(stack.extend(rows[4:5], [Lane(cache, 1)]), stack(rows[[0, 1, 2, 4]][None])[0, -1:]) < 1e-5
    fork.truncate(2)
    assert relative_l2(stack.extend(rows[3:4], [Lane(fork, 1)]), expected) < 1e-5


def test_several_lanes_equal_single_ones() -> None:
    stack, rows = make_stack(), torch.randn(9, WIDTH)
    caches = [stack.new_cache(16) for _ in range(4)]
    for i, cache in enumerate(caches):
        stack.extend(rows[: 2 + i % 2], [Lane(cache, 2 + i % 2, causal=True)])
    lanes = [Lane(caches[0], 1), Lane(caches[1], 3, caches[1].branch([0, 0, 0]))]
    together = stack.extend(rows[5:9], lanes)
    alone = [stack.extend(rows[5:6], [Lane(caches[2], 1)])]
    alone.append(stack.extend(rows[6:9], [Lane(caches[3], 3, caches[3].branch([0, 0, 0]))]))
    assert relative_l2(together, torch.cat(alone)) < 1e-5
