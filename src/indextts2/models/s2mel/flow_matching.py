"""Flow matching: the sampler with guidance, and the training loss.

Legend: B batch, M mel bands, P prompt frames, N target frames, T = P + N, C condition channels, S style features.

Source: flow matching (Lipman et al., 2023) with classifier-free guidance, spec 07 section 7.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator

import torch
from torch import Tensor

from indextts2.errors import Cancelled, UsageError
from indextts2.models.s2mel.dit import DiT
from indextts2.models.s2mel.solvers import SOLVERS, evaluation_times, time_grid

# Number of velocities computed before (with Euler steps that of the step), the state (B,M,T) at which this one is
# taken, velocities (B or 2B, M, frames computed): conditional items first.
StepCallback = Callable[[int, Tensor, Tensor], None]
CancelCheck = Callable[[], bool]


def start_noise(mel_bands: int, frames: int, generator: torch.Generator) -> Tensor:
    """Standard normal (1,M,T) on the device of `generator`, drawn band after band like the official code."""
    return torch.randn((1, mel_bands, frames), generator=generator, device=generator.device)


def frames_before(counts: Tensor, frames: int) -> Tensor:
    """(B,) counts -> (B,T,1) boolean: true on the first `counts` frames of each item."""
    return (torch.arange(frames, device=counts.device) < counts[:, None])[..., None]


def integration(
    dit: DiT,
    mu: Tensor,
    prompt_mel: Tensor,
    style: Tensor,
    noise: Tensor,
    *,
    steps: int,
    cfg_rate: float,
    solver: str = "euler",
    sway: float = 0.0,
    guidance_until: float = 1.0,
    prompt_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    all_frames: bool = False,
    known: Tensor | None = None,
    on_step: StepCallback | None = None,
) -> Generator[int, None, Tensor]:
    """Integrate the flow from noise to mel, one velocity at a time: other work may be done in between.

    Args:
        mu: condition (B,T,C) of prompt and target.
        prompt_mel: (B,M,P).
        style: (B,S).
        noise: start state (B,M,T); its prompt part is ignored.
        cfg_rate: guidance; 0 leaves the null branch out.
        solver, sway: see `solvers`.
        guidance_until: velocities at this time and later are taken without guidance, at half the cost.
        prompt_lengths: (B,) prompt frames of each item; None means P for all.
        lengths: (B,) frames of each item, prompt and target; None means T for all.
        dtype: of the large products, see `DiT.velocity`.
        all_frames: also compute the velocities of prompt frames, which nothing but a comparison needs.
        known: mel (B,M,K) of the first K frames behind a prompt of P frames, if they are known: they are led along the
            straight path from their noise to this mel, which is the one the network was trained on, so that all
            other frames continue them.
        on_step: called with every velocity.

    Yields:
        Before every velocity, the number of those computed.

    Returns:
        The state at time 1 (B,M,T), zero on prompt frames.

    Raises:
        UsageError: an option is out of range, or the shapes do not fit.
    """
    _check(mu, prompt_mel, style, noise, steps, cfg_rate)
    batch, frames = mu.shape[:2]
    if prompt_lengths is None:
        prompt_lengths = torch.full((batch,), prompt_mel.shape[-1], device=mu.device)
    is_prompt = frames_before(prompt_lengths, frames)
    is_given = is_prompt[:, : prompt_mel.shape[-1]]
    grid = time_grid(steps, sway)
    times = evaluation_times(solver, grid)
    condition = dit.condition(prompt_mel.transpose(1, 2).where(is_given, 0.0), mu, style, lengths)
    guided = dit.with_null_branch(condition) if cfg_rate > 0 and guidance_until > 0 else None
    tables = dit.time_tables(times.to(mu.device))
    velocity_of = (dit.padded or dit).velocity
    first_frame = 0 if all_frames else int(prompt_lengths.min())
    move = functools.partial(_move, is_prompt=is_prompt, first_frame=first_frame)
    lead = functools.partial(_lead, noise=noise, known=known, first=prompt_mel.shape[-1])

    solution = SOLVERS[solver][0](noise.transpose(1, 2).masked_fill(is_prompt, 0.0), grid, move)
    x, index = next(solution)
    while True:
        yield index
        x = lead(x, time=float(times[index]))
        if guided is not None and times[index] < guidance_until:
            velocity = velocity_of(torch.cat((x, x)), guided, tables.row(index), first_frame, dtype)
            with_condition, without = velocity.chunk(2)
            total = (1.0 + cfg_rate) * with_condition - cfg_rate * without
        else:
            total = velocity = velocity_of(x, condition, tables.row(index), first_frame, dtype)
        if on_step is not None:
            on_step(index, x.transpose(1, 2), velocity.transpose(1, 2))
        try:
            x, index = solution.send(total)
        except StopIteration as end:
            return lead(end.value, time=1.0).transpose(1, 2)


def _move(x: Tensor, velocity: Tensor, interval: float, *, is_prompt: Tensor, first_frame: int) -> Tensor:
    """The state (B,T,M) after `interval` at the velocity (B, T-first_frame, M) of its last frames; prompts stay 0."""
    moved = torch.add(x[:, first_frame:], velocity, alpha=interval)
    return torch.cat((x[:, :first_frame], moved), dim=1).masked_fill(is_prompt, 0.0)


def _lead(x: Tensor, *, noise: Tensor, known: Tensor | None, first: int, time: float) -> Tensor:
    """The state (B,T,M) with the frames from `first` on that are `known`, if any, where they are at `time`."""
    if known is None:
        return x
    end = first + known.shape[-1]
    path = torch.lerp(noise[:, :, first:end], known, time).transpose(1, 2)
    return torch.cat((x[:, :first], path, x[:, end:]), dim=1)


def integrate(
    dit: DiT,
    mu: Tensor,
    prompt_mel: Tensor,
    style: Tensor,
    noise: Tensor,
    *,
    steps: int,
    cfg_rate: float,
    solver: str = "euler",
    sway: float = 0.0,
    guidance_until: float = 1.0,
    prompt_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    all_frames: bool = False,
    on_step: StepCallback | None = None,
    cancel: CancelCheck | None = None,
) -> Tensor:
    """`integration` in one go, with the same arguments and result.

    Args:
        cancel: asked before every velocity; true raises Cancelled.
    """
    running = integration(
        dit, mu, prompt_mel, style, noise, steps=steps, cfg_rate=cfg_rate, solver=solver, sway=sway,
        guidance_until=guidance_until, prompt_lengths=prompt_lengths, lengths=lengths, dtype=dtype,
        all_frames=all_frames, on_step=on_step,
    )  # fmt: skip
    while True:
        try:
            done = next(running)
        except StopIteration as end:
            return end.value
        if cancel is not None and cancel():
            raise Cancelled(f"the flow was cancelled after {done} velocities")


def sample(
    dit: DiT,
    mu: Tensor,
    prompt_mel: Tensor,
    style: Tensor,
    noise: Tensor,
    *,
    steps: int,
    cfg_rate: float,
    on_step: Callable[[int, Tensor], None] | None = None,
    cancel: CancelCheck | None = None,
) -> Tensor:
    """Mel (B,M,N) of the target frames; arguments as in `integrate`, `on_step` gets step index and state."""

    def report(step: int, state: Tensor, _velocity: Tensor) -> None:
        if on_step is not None:
            on_step(step, state)

    state = integrate(dit, mu, prompt_mel, style, noise, steps=steps, cfg_rate=cfg_rate, on_step=report, cancel=cancel)
    return state[:, :, prompt_mel.shape[-1] :]


def _check(mu: Tensor, prompt_mel: Tensor, style: Tensor, noise: Tensor, steps: int, cfg_rate: float) -> None:
    if steps < 1:
        raise UsageError(f"steps must be at least 1, not {steps}")
    if not 0.0 <= cfg_rate < float("inf"):
        raise UsageError(f"cfg_rate must be 0 or more, not {cfg_rate!r}")
    batch, frames = mu.shape[:2]
    if noise.shape != (batch, prompt_mel.shape[1], frames):
        raise UsageError(
            f"noise of shape {tuple(noise.shape)} does not fit a condition of {batch} x {frames} frames "
            f"and {prompt_mel.shape[1]} mel bands"
        )
    if prompt_mel.shape[0] != batch or style.shape[0] != batch:
        raise UsageError(
            f"{prompt_mel.shape[0]} prompts and {style.shape[0]} styles were given for {batch} conditions; "
            "they must be equally many"
        )
    if prompt_mel.shape[-1] >= frames:
        raise UsageError(f"the prompt holds {prompt_mel.shape[-1]} of {frames} frames; no frame is left to generate")


def random_prompt_lengths(lengths: Tensor, generator: torch.Generator, without: float = 0.1) -> Tensor:
    """(B,) prompt frames for training: uniform in 0..length-1, and none at all with probability `without`."""
    shape, device = lengths.shape, generator.device
    share = torch.rand(shape, generator=generator, device=device).to(lengths.device)
    keep = torch.rand(shape, generator=generator, device=device).to(lengths.device) >= without
    return (share * (lengths - 1)).long() * keep


def flow_matching_loss(
    dit: DiT,
    mel: Tensor,
    prompt_lengths: Tensor,
    mu: Tensor,
    style: Tensor,
    lengths: Tensor,
    generator: torch.Generator,
    dropout: float = 0.1,
    time_power: float = 1.0,
) -> Tensor:
    """Mean squared error of the velocity on frames that are neither prompt nor padding.

    The path is the straight line x_t = (1-t) noise + t mel, whose velocity is mel - noise.

    Args:
        mel: (B,M,T) log-mel.
        prompt_lengths: (B,) frames that are given as the prompt, see `random_prompt_lengths`.
        mu: condition (B,T,C).
        style: (B,S).
        lengths: (B,) frames per item.
        generator: source of times, noise and dropout, on any device.
        dropout: probability that an item is trained without prompt, condition and style, for guidance.
        time_power: times are u ** time_power of a uniform u: above 1, more of them are early, where words are decided.
    """

    def draw(function: Callable[..., Tensor], *shape: int) -> Tensor:
        return function(shape, generator=generator, device=generator.device).to(mel.device, mel.dtype)

    batch, _, frames = mel.shape
    target = mel.transpose(1, 2)
    t = draw(torch.rand, batch) ** time_power
    noise = draw(torch.randn, *target.shape)
    keep = (draw(torch.rand, batch) >= dropout).to(mel.dtype)[:, None, None]
    is_prompt = frames_before(prompt_lengths, frames)
    is_wanted = frames_before(lengths, frames) & ~is_prompt
    state = torch.lerp(noise, target, t[:, None, None]).masked_fill(is_prompt, 0.0)
    prompt = target.where(is_prompt, 0.0) * keep
    padded = lengths if bool((lengths < frames).any()) else None
    condition = dit.condition(prompt, mu * keep, style * keep[:, :, 0], padded)
    # Frames that are prompt in every item feed the attention only.
    first = int(prompt_lengths.min())
    velocity = dit.velocity(state, condition, dit.time_tables(t), first)
    error = (velocity - (target - noise)[:, first:]).square() * is_wanted[:, first:]
    return error.sum() / (is_wanted.sum() * mel.shape[1])
