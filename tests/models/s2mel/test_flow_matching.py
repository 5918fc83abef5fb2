"""The sampler against the golden run of 25 steps; guidance, batches, cancelling, noise; the training loss."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from indextts2.errors import Cancelled, UsageError
from indextts2.models.s2mel.dit import DiT
from indextts2.models.s2mel.flow_matching import (
    flow_matching_loss,
    integrate,
    integration,
    random_prompt_lengths,
    sample,
    start_noise,
)
from tests.conftest import golden_error
from tests.models.s2mel.test_dit import TINY, inputs, tiny
from tests.models.weights import load_strictly

PROMPT, FRAMES = 6, 20


@pytest.fixture(scope="module")
def dit(small_config, small_states) -> DiT:
    model = DiT(small_config.s2mel)
    load_strictly(model, {key.removeprefix("estimator."): value for key, value in small_states["cfm"].items()})
    return model


@pytest.fixture(scope="module")
def golden_run(reference: Path, golden) -> dict[str, torch.Tensor]:
    """Arguments of the golden run; the start noise is derived from its name."""
    file = reference / "name_derived_weights.py"
    spec = importlib.util.spec_from_file_location("name_derived_weights", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    key = json.loads((reference / "inputs" / "plan.json").read_text())["flow"]["noise_key"]
    mu = torch.cat([torch.from_numpy(golden[name]) for name in ("prompt_condition", "cond")], 1)
    mel = torch.from_numpy(golden["ref_mel"])
    noise = torch.from_numpy(module.noise(key, (1, mel.shape[1], mu.shape[1])))
    assert golden_error(noise[..., :16].numpy(), golden["cfm_noise_head"]) == 0
    return {"mu": mu, "prompt_mel": mel, "style": torch.from_numpy(golden["style"]), "noise": noise}


@pytest.fixture(scope="module")
def flow(reference: Path) -> dict:
    return json.loads((reference / "inputs" / "plan.json").read_text())["flow"]


def tiny_run(batch: int = 1, frames: int = FRAMES, prompt: int = PROMPT) -> dict[str, torch.Tensor]:
    v = inputs(batch, frames, prompt)
    noise = torch.randn(batch, TINY.dit.in_channels, frames, dtype=torch.float64)
    return {"mu": v["mu"], "prompt_mel": v["prompt_mel"].transpose(1, 2), "style": v["style"], "noise": noise}


def test_golden_run_with_all_frames(dit: DiT, golden, golden_run, flow):
    seen: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    with torch.inference_mode():
        state = integrate(
            dit,
            **golden_run,
            steps=flow["steps"],
            cfg_rate=flow["cfg_rate"],
            all_frames=True,
            on_step=lambda step, x, v: seen.__setitem__(step, (x, v)),
        )
    assert sorted(seen) == list(range(flow["steps"]))
    for step in flow["recorded_steps"]:
        assert golden_error(seen[step][0].numpy(), golden[f"cfm_x_step{step}"]) < 1e-5
        assert golden_error(seen[step][1].numpy(), golden[f"cfm_v_step{step}"]) < 1e-5
    assert golden_error(state.numpy(), golden["cfm_out_full"]) < 1e-5


def run_out(running):
    """The result of a generator."""
    while True:
        try:
            next(running)
        except StopIteration as end:
            return end.value


def test_known_frames_are_led_along_their_path():
    dit, run = tiny(), tiny_run()
    known = torch.randn(1, TINY.dit.in_channels, 5, dtype=torch.float64)
    behind = slice(PROMPT, PROMPT + 5)
    seen: list[torch.Tensor] = []
    with torch.inference_mode():
        state = run_out(
            integration(dit, **run, steps=4, cfg_rate=0.7, known=known, on_step=lambda _, x, __: seen.append(x))
        )
        free = integrate(dit, **run, steps=4, cfg_rate=0.7)
        none = run_out(integration(dit, **run, steps=4, cfg_rate=0.7, known=known[:, :, :0]))
    for step, x in enumerate(seen):
        expected = run["noise"][:, :, behind] * (1 - step / 4) + known * (step / 4)
        assert torch.allclose(x[:, :, behind], expected)
    assert torch.equal(state[:, :, behind], known)
    assert torch.equal(none, free)
    assert not torch.allclose(state[:, :, PROMPT + 5 :], free[:, :, PROMPT + 5 :])


def test_a_single_step_starts_from_noise_whatever_is_known():
    dit, run = tiny(), tiny_run()
    known = torch.randn(1, TINY.dit.in_channels, 5, dtype=torch.float64)
    with torch.inference_mode():
        led = run_out(integration(dit, **run, steps=1, cfg_rate=0.7, known=known))
        free = integrate(dit, **run, steps=1, cfg_rate=0.7)
    assert torch.equal(led[:, :, PROMPT + 5 :], free[:, :, PROMPT + 5 :])


def test_golden_run_as_inference_makes_it(dit: DiT, golden, golden_run, flow):
    with torch.inference_mode():
        mel = sample(dit, **golden_run, steps=flow["steps"], cfg_rate=flow["cfg_rate"])
    assert golden_error(mel.numpy(), golden["mel"]) < 1e-5


@pytest.mark.parametrize("prompt", [0, 1, PROMPT])
def test_skipping_prompt_frames_changes_nothing(prompt: int):
    model, run = tiny(), tiny_run(prompt=prompt)
    with torch.inference_mode():
        whole = integrate(model, **run, steps=3, cfg_rate=0.7, all_frames=True)
        mel = sample(model, **run, steps=3, cfg_rate=0.7)
    assert mel.shape == (1, TINY.dit.in_channels, FRAMES - prompt)
    assert not whole[..., :prompt].any()
    torch.testing.assert_close(mel, whole[..., prompt:], rtol=0, atol=1e-12)


def test_without_guidance_only_one_branch_runs():
    model, run = tiny(), tiny_run()
    shapes = []
    with torch.inference_mode():
        unguided = integrate(model, **run, steps=2, cfg_rate=0.0, on_step=lambda _s, _x, v: shapes.append(v.shape[0]))
        nearly = integrate(model, **run, steps=2, cfg_rate=1e-9)
        guided = integrate(model, **run, steps=2, cfg_rate=0.7)
    assert shapes == [1, 1]
    torch.testing.assert_close(unguided, nearly, rtol=0, atol=1e-7)
    assert (guided - unguided).abs().max() > 1e-3


def test_guidance_may_end_before_the_flow():
    model, run = tiny(), tiny_run()
    shapes: list[int] = []

    def mel(**options: float) -> torch.Tensor:
        shapes.clear()
        with torch.inference_mode():
            return integrate(model, **run, steps=4, **options, on_step=lambda _s, _x, v: shapes.append(v.shape[0]))

    whole = mel(cfg_rate=0.7)
    half = mel(cfg_rate=0.7, guidance_until=0.5)
    assert shapes == [2, 2, 1, 1]
    assert (half - whole).abs().max() > 1e-6 and (half - mel(cfg_rate=0.0)).abs().max() > 1e-6
    assert torch.equal(mel(cfg_rate=0.7, guidance_until=0.0), mel(cfg_rate=0.0))


def test_padded_batch_equals_single_items():
    model, run = tiny(), tiny_run(batch=3)
    prompts, lengths = torch.tensor([6, 3, 5]), torch.tensor([20, 15, 18])
    with torch.inference_mode():
        batch = integrate(model, **run, steps=3, cfg_rate=0.7, prompt_lengths=prompts, lengths=lengths)
        for i, (prompt, length) in enumerate(zip(prompts.tolist(), lengths.tolist(), strict=True)):
            single = sample(
                model,
                run["mu"][i : i + 1, :length],
                run["prompt_mel"][i : i + 1, :, :prompt],
                run["style"][i : i + 1],
                run["noise"][i : i + 1, :, :length],
                steps=3,
                cfg_rate=0.7,
            )
            torch.testing.assert_close(batch[i : i + 1, :, prompt:length], single, rtol=0, atol=1e-12)
            assert not batch[i, :, :prompt].any()


def test_cancelling_stops_between_steps():
    model, run, asked = tiny(), tiny_run(), []

    def cancel() -> bool:
        asked.append(True)
        return len(asked) > 2

    with torch.inference_mode(), pytest.raises(Cancelled, match="after 2 velocities"):
        sample(model, **run, steps=5, cfg_rate=0.7, cancel=cancel)


def test_steps_are_reported():
    model, run, states = tiny(), tiny_run(), []
    with torch.inference_mode():
        sample(model, **run, steps=3, cfg_rate=0.7, on_step=lambda step, x: states.append((step, x.clone())))
    assert [step for step, _ in states] == [0, 1, 2]
    torch.testing.assert_close(states[0][1][..., PROMPT:], run["noise"][..., PROMPT:])
    assert all(not x[..., :PROMPT].any() for _, x in states)


def test_start_noise_follows_the_generator():
    draw = [start_noise(4, 9, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert draw[0].equal(draw[1]) and not draw[0].equal(draw[2])
    torch.manual_seed(1)
    assert draw[0].equal(torch.randn(1, 4, 9))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "steps must be at least 1"),
        ({"cfg_rate": -0.1}, "cfg_rate must be 0 or more"),
        ({"cfg_rate": float("nan")}, "cfg_rate must be 0 or more"),
        ({"solver": "newton"}, "solver must be one of euler, midpoint, heun, ab2"),
        ({"noise": torch.zeros(1, TINY.dit.in_channels, FRAMES - 1)}, "noise of shape"),
        ({"style": torch.zeros(2, TINY.style_dim)}, "equally many"),
        ({"prompt_mel": torch.zeros(1, TINY.dit.in_channels, FRAMES)}, "no frame is left"),
    ],
)
def test_senseless_arguments_are_refused(change: dict, message: str):
    with pytest.raises(UsageError, match=message):
        integrate(tiny(), **{**tiny_run(), "steps": 2, "cfg_rate": 0.7, **change})


def loss_arguments(batch: int = 3) -> dict[str, torch.Tensor]:
    v = inputs(batch, FRAMES, 0)
    return {
        "mel": torch.randn(batch, TINY.dit.in_channels, FRAMES, dtype=torch.float64),
        "prompt_lengths": torch.tensor([4, 0, 9]),
        "mu": v["mu"],
        "style": v["style"],
        "lengths": torch.tensor([20, 13, 17]),
    }


def test_loss_ignores_padding():
    arguments, model = loss_arguments(), tiny()
    changed = {name: value.clone() for name, value in arguments.items()}
    for i, length in enumerate(arguments["lengths"].tolist()):
        changed["mel"][i, :, length:] = 50
        changed["mu"][i, length:] = 50
    losses = [
        flow_matching_loss(model, **a, generator=torch.Generator().manual_seed(0)).item() for a in (arguments, changed)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-10) and losses[0] > 0


def test_loss_counts_target_frames_only(monkeypatch: pytest.MonkeyPatch):
    """A network that says zero has the mean square of the true velocity as its loss."""
    arguments, model = loss_arguments(), tiny()
    monkeypatch.setattr(model, "velocity", lambda x, *_: torch.zeros_like(x))
    loss = flow_matching_loss(model, **arguments, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)
    torch.rand((3,), generator=generator)
    noise = torch.randn((3, FRAMES, TINY.dit.in_channels), generator=generator).double()
    target = arguments["mel"].transpose(1, 2) - noise
    wanted = [
        target[i, p:n].flatten()
        for i, (p, n) in enumerate(
            zip(arguments["prompt_lengths"].tolist(), arguments["lengths"].tolist(), strict=True)
        )
    ]
    assert loss.item() == pytest.approx(torch.cat(wanted).square().mean().item(), rel=1e-9)


def test_loss_without_velocities_of_common_prompt_frames_is_the_same(monkeypatch: pytest.MonkeyPatch):
    arguments, model = loss_arguments(), tiny()
    arguments["prompt_lengths"] = torch.tensor([6, 5, 9])
    velocity = model.velocity

    def loss() -> float:
        return flow_matching_loss(model, **arguments, generator=torch.Generator().manual_seed(0)).item()

    short = loss()
    monkeypatch.setattr(model, "velocity", lambda x, c, t, first: velocity(x, c, t)[:, first:])
    assert short == pytest.approx(loss(), rel=1e-9)


def test_full_dropout_hides_prompt_condition_and_style():
    arguments, model = loss_arguments(), tiny()
    arguments["prompt_lengths"] = torch.tensor([0, 0, 0])
    changed = {**arguments, "mu": arguments["mu"] + 1, "style": arguments["style"] + 1}

    def loss(values: dict, dropout: float) -> float:
        return flow_matching_loss(model, **values, generator=torch.Generator().manual_seed(0), dropout=dropout).item()

    assert loss(arguments, 1.0) == loss(changed, 1.0)
    assert loss(arguments, 0.0) != loss(changed, 0.0)


def test_training_lowers_the_loss():
    model = tiny().float()
    arguments = {k: v.float() if v.is_floating_point() else v for k, v in loss_arguments().items()}
    optimiser = torch.optim.Adam(model.parameters(), 5e-3)

    def held_out() -> float:
        with torch.inference_mode():
            seeds = [torch.Generator().manual_seed(1000 + i) for i in range(8)]
            return sum(flow_matching_loss(model, **arguments, generator=g, dropout=0.0).item() for g in seeds) / 8

    generator, before = torch.Generator().manual_seed(0), held_out()
    for _ in range(50):
        optimiser.zero_grad()
        flow_matching_loss(model, **arguments, generator=generator).backward()
        optimiser.step()
    assert held_out() < 0.8 * before


def test_random_prompt_lengths():
    lengths = torch.full((4000,), 50)
    prompts = random_prompt_lengths(lengths, torch.Generator().manual_seed(0))
    assert prompts.min() == 0 and 45 <= prompts.max() <= 49
    assert 0.08 < (prompts == 0).float().mean() < 0.16
