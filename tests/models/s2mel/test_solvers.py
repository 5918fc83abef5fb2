"""Solvers on equations whose solutions are known, and what they ask of the network."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from indextts2.errors import UsageError
from indextts2.models.s2mel.flow_matching import integrate
from indextts2.models.s2mel.solvers import SOLVERS, evaluation_times, time_grid
from tests.conftest import relative_l2
from tests.models.s2mel.test_dit import tiny
from tests.models.s2mel.test_flow_matching import FRAMES, PROMPT, tiny_run

ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "ab2": 2}


def solve(solver: str, grid: Tensor, velocity: Callable[[Tensor, float], Tensor]) -> Tensor:
    """The solution of dx/dt = velocity(x, t) from x(0) = 1."""
    times = evaluation_times(solver, grid)
    solution = SOLVERS[solver][0](torch.ones(1, dtype=torch.float64), grid, lambda x, v, interval: x + interval * v)
    x, index = next(solution)
    while True:
        try:
            x, index = solution.send(velocity(x, float(times[index])))
        except StopIteration as end:
            return end.value


def test_even_grid():
    step = torch.tensor(0.04, dtype=torch.float32)
    expected = [float(s * step) if s < 13 else float(1 - (25 - s) * step) for s in range(26)]
    assert time_grid(25).tolist() == expected


@pytest.mark.parametrize("sway", [-1.0, -0.5, 0.5, 1.0])
def test_swaying_grid(sway: float):
    grid = time_grid(8, sway)
    assert grid[0] == 0 and grid[-1] == 1 and grid.dtype is torch.float32
    intervals = grid.diff()
    assert (intervals > 0).all()
    assert ((intervals.diff() > 0) == (sway < 0)).all()
    assert float(grid[4]) == pytest.approx(0.5 + sway * (math.cos(math.pi / 4) - 0.5), abs=1e-6)


@pytest.mark.parametrize("sway", [0.0, -0.7])
@pytest.mark.parametrize("solver", SOLVERS)
def test_order_of_convergence(solver: str, sway: float):
    def error(steps: int) -> float:
        """Of dx/dt = x t."""
        return abs(float(solve(solver, time_grid(steps, sway), lambda x, t: x * t)) - math.exp(0.5))

    assert math.log2(error(20) / error(40)) == pytest.approx(ORDERS[solver], abs=0.15)


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_constant_velocity_is_followed_exactly(solver: str):
    assert float(solve(solver, time_grid(3, -0.4), lambda x, t: 0 * x + 2)) == pytest.approx(3.0, abs=1e-6)


@pytest.mark.parametrize(("solver", "evaluations"), [("euler", 3), ("midpoint", 6), ("heun", 6), ("ab2", 3)])
@pytest.mark.parametrize("guidance_until", [0.4, 1.0])
def test_in_the_flow(solver: str, evaluations: int, guidance_until: float):
    model, run, seen = tiny(), tiny_run(), []
    options = {"steps": 3, "cfg_rate": 0.7, "solver": solver, "sway": -0.5, "guidance_until": guidance_until}
    with torch.inference_mode():
        first = integrate(model, **run, **options, on_step=lambda index, _x, _v: seen.append(index))
        again = integrate(model, **run, **options, all_frames=True)
        fine = integrate(model, **run, **{**options, "steps": 60})
    assert seen == list(range(evaluations))
    assert first.shape[-1] == FRAMES and torch.isfinite(first).all() and not first[..., :PROMPT].any()
    torch.testing.assert_close(first, again, rtol=0, atol=1e-12)
    assert (first - fine).norm() < 0.5 * fine.norm()


def test_rounded_products_change_little():
    model = tiny().float().requires_grad_(False)
    run = {name: value.float() for name, value in tiny_run().items()}
    with torch.inference_mode():
        exact = integrate(model, **run, steps=3, cfg_rate=0.7)
        rounded = integrate(model, **run, steps=3, cfg_rate=0.7, dtype=torch.bfloat16)
        again = integrate(model, **run, steps=3, cfg_rate=0.7)
    assert rounded.dtype is torch.float32
    assert 1e-5 < relative_l2(rounded, exact) < 2e-2
    assert torch.equal(again, exact)


def test_an_unknown_solver():
    with pytest.raises(UsageError, match="euler, midpoint, heun, ab2, not 'rk4'"):
        evaluation_times("rk4", time_grid(2))
