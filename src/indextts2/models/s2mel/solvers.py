"""Solvers of the flow: when the velocity is asked for, and how the state follows it.

A solver is a generator: it yields a state and the index of the time at which it wants the velocity, is sent that
velocity, and returns the last state. So it neither knows the network nor decides when to compute.

Source: Butcher, Numerical Methods for Ordinary Differential Equations; sway sampling: F5-TTS (Chen et al., 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from indextts2.errors import UsageError

Move = Callable[[Tensor, Tensor, float], Tensor]
"""The state after it has moved with a velocity for an interval of time."""
Solution = Generator[tuple[Tensor, int], Tensor, Tensor]


def time_grid(steps: int, sway: float = 0.0) -> Tensor:
    """The steps + 1 times from 0 to 1 in float32: evenly spaced, or with `sway` below 0 closer together at the start.

    At s between 0 and 1 the time is s + sway * (cos(pi/2 s) - 1 + s).
    """
    even = torch.linspace(0, 1, steps + 1, dtype=torch.float32, device="cpu")
    if sway == 0.0:
        return even
    s = even.double()
    times = (s + sway * ((math.pi / 2 * s).cos() - 1 + s)).float()
    times[0], times[-1] = 0.0, 1.0
    return times


def _interval(grid: Tensor, step: int) -> float:
    """The difference of two times in float32, as the official code has it."""
    return float(grid[step + 1] - grid[step])


def euler(x: Tensor, grid: Tensor, move: Move) -> Solution:
    """One velocity per step, at its start."""
    for step in range(len(grid) - 1):
        x = move(x, (yield x, step), _interval(grid, step))
    return x


def midpoint(x: Tensor, grid: Tensor, move: Move) -> Solution:
    """Two velocities per step: the one in the middle counts."""
    for step in range(len(grid) - 1):
        interval = _interval(grid, step)
        middle = move(x, (yield x, 2 * step), interval / 2)
        x = move(x, (yield middle, 2 * step + 1), interval)
    return x


def heun(x: Tensor, grid: Tensor, move: Move) -> Solution:
    """Two velocities per step: the mean of that at the start and that at the end."""
    for step in range(len(grid) - 1):
        interval = _interval(grid, step)
        first = yield x, 2 * step
        second = yield move(x, first, interval), 2 * step + 1
        x = move(x, torch.lerp(first, second, 0.5), interval)
    return x


def adams_bashforth(x: Tensor, grid: Tensor, move: Move) -> Solution:
    """One velocity per step, continued by its change since the step before (second order, uneven steps)."""
    before: Tensor | None = None
    last_interval = 1.0
    for step in range(len(grid) - 1):
        interval = _interval(grid, step)
        velocity = yield x, step
        ahead = velocity
        if before is not None:
            ahead = torch.lerp(before, velocity, 1 + interval / (2 * last_interval))
        x = move(x, ahead, interval)
        before, last_interval = velocity, interval
    return x


# Name -> solver, and where within a step, as parts of it, it wants the velocity.
SOLVERS: dict[str, tuple[Callable[[Tensor, Tensor, Move], Solution], tuple[float, ...]]] = {
    "euler": (euler, (0.0,)),
    "midpoint": (midpoint, (0.0, 0.5)),
    "heun": (heun, (0.0, 1.0)),
    "ab2": (adams_bashforth, (0.0,)),
}


def velocities_per_step(solver: str) -> int:
    """How often `solver` asks for the velocity in one step."""
    return len(SOLVERS[solver][1])


def evaluation_times(solver: str, grid: Tensor) -> Tensor:
    """The times (E,) at which `solver` wants the velocity, in its order.

    Raises:
        UsageError: there is no such solver.
    """
    if solver not in SOLVERS:
        raise UsageError(f"solver must be one of {', '.join(SOLVERS)}, not {solver!r}")
    parts = torch.tensor(SOLVERS[solver][1])
    return torch.lerp(grid[:-1, None], grid[1:, None], parts).flatten()
