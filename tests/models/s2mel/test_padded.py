"""The velocity at padded lengths equals the velocity; here without graphs, on the CPU."""

from __future__ import annotations

import pytest
import torch

from indextts2.models.s2mel import padded as padded_module
from indextts2.models.s2mel.dit import DiT
from indextts2.models.s2mel.flow_matching import integrate, sample
from indextts2.models.s2mel.padded import PaddedVelocity
from tests.conftest import golden_error
from tests.models.recorded import DevicesSeen
from tests.models.s2mel.test_dit import TINY, dit, inputs, tiny  # noqa: F401 (a fixture)
from tests.models.s2mel.test_flow_matching import flow, golden_run, tiny_run  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    if "golden" not in request.fixturenames:
        monkeypatch.setattr(padded_module, "FRAMES", 16)


def sizes(padded: PaddedVelocity) -> set[int]:
    return {frames for _, frames, _ in padded._buffers}


@torch.inference_mode()
def test_all_lengths_share_few_sizes() -> None:
    """One after the other, long and short, so that each finds what another has left."""
    model = tiny()
    padded = PaddedVelocity(model)
    table = model.time_tables(torch.tensor([0.3], dtype=torch.float64))
    for frames in (48, 33, 7, 47, 16, 17, 32, 5):
        for prompt in (0, 3, 15, 16, 31, 40):
            if prompt < frames:
                values = inputs(2, frames, prompt)
                x = values.pop("x")
                condition = model.condition(**values)
                expected = model.velocity(x, condition, table, prompt)
                found = padded.velocity(x, condition, table, prompt)
                torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert sizes(padded) == {16, 32, 48}


@torch.inference_mode()
def test_damaged_inputs_leave_nothing_behind() -> None:
    model, values = tiny(), inputs(1, 30, 4)
    x = values.pop("x")
    condition, table = model.condition(**values), model.time_tables(torch.zeros(1, dtype=torch.float64))
    padded = PaddedVelocity(model)
    assert padded.velocity(x * float("nan"), condition, table, 4).isnan().all()
    short = model.condition(values["prompt_mel"], values["mu"][:, :20], values["style"])
    expected = model.velocity(x[:, :20], short, table, 4)
    torch.testing.assert_close(padded.velocity(x[:, :20], short, table, 4), expected, rtol=0, atol=1e-12)
    assert sizes(padded) == {32}


@torch.inference_mode()
@pytest.mark.parametrize("options", [{}, {"guidance_until": 0.5}, {"cfg_rate": 0.0}, {"all_frames": True}])
def test_whole_flows(monkeypatch: pytest.MonkeyPatch, options: dict) -> None:
    model, run = tiny(), tiny_run(batch=3)
    lengths = {"prompt_lengths": torch.tensor([6, 3, 5]), "lengths": torch.tensor([20, 15, 18])}
    everything = {"steps": 3, "cfg_rate": 0.7} | options
    for more in ({}, lengths):
        expected = integrate(model, **run, **everything, **more)
        padded = PaddedVelocity(model)
        with monkeypatch.context() as patch:
            patch.setattr(DiT, "padded", padded)
            found = integrate(model, **run, **everything, **more)
        assert sizes(padded) == {32}
        for item, length in enumerate(more.get("lengths", torch.tensor([20, 20, 20])).tolist()):
            torch.testing.assert_close(found[item, :, :length], expected[item, :, :length], rtol=0, atol=1e-12)


@torch.inference_mode()
def test_golden_run(dit: DiT, golden, golden_run, flow, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    padded = PaddedVelocity(dit)
    monkeypatch.setattr(DiT, "padded", padded)
    mel = sample(dit, **golden_run, steps=flow["steps"], cfg_rate=flow["cfg_rate"])
    assert golden_error(mel.numpy(), golden["mel"]) < 1e-5
    assert sizes(padded) and all(size % 128 == 0 for size in sizes(padded))


@torch.inference_mode()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_velocity_can_be_recorded(dtype: torch.dtype) -> None:
    """On tensors without values: it depends on none of them, and touches nothing that lies on the CPU."""
    with torch.device("meta"):
        model = DiT(TINY).requires_grad_(False)
        x, mu, style = torch.empty(2, 30, 4), torch.empty(2, 30, 7), torch.empty(2, 3)
        condition, table = model.condition(x[:, :20], mu, style), model.time_tables(torch.empty(1))
    padded = PaddedVelocity(model)
    buffers = padded._make_buffers(x, condition, table, 32)
    with DevicesSeen() as seen:
        padded._compute(buffers, 16, dtype)
    assert seen.devices == {"meta"}


def test_a_cpu_does_not_pad() -> None:
    assert tiny().padded is None
