"""Presets and the options behind them: what they resolve to, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from indextts2.config import GenerationConfig, InferenceConfig, ModelConfig, ResolvedConfig, build
from indextts2.errors import ConfigError
from indextts2.models.s2mel.solvers import SOLVERS as IMPLEMENTED
from indextts2.presets import PRESETS, SOLVERS, Preset

MODEL = ModelConfig()


def test_exact_is_the_default() -> None:
    plain, exact = (InferenceConfig(seed=1, **more).resolved(MODEL) for more in ({}, {"preset": "exact"}))
    assert plain == exact
    assert (plain.steps, plain.solver, plain.sway, plain.guidance_until) == (25, "euler", 0.0, 1.0)
    assert (plain.prompt_seconds, plain.flow_dtype, plain.gpt_weights) == (0.0, "float32", "full")
    assert Preset() == PRESETS["exact"]


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_and_stay_resolved(name: str) -> None:
    resolved = InferenceConfig(preset=name, seed=1).resolved(MODEL)
    preset = PRESETS[name]
    for field in dataclasses.fields(Preset):
        if field.name != "steps_share":
            assert getattr(resolved, field.name) == getattr(preset, field.name)
    assert resolved.steps == {"exact": 25, "balanced": 13, "fast": 8}[name]
    assert resolved.resolved(MODEL) == resolved


def test_options_go_before_the_preset() -> None:
    given = {"steps": 3, "solver": "heun", "sway": 0.25, "guidance_until": 0.0, "prompt_seconds": 0.0,
             "flow_dtype": "float32", "gpt_weights": "full"}  # fmt: skip
    resolved = InferenceConfig(preset="fast", **given).resolved(MODEL)  # type: ignore[arg-type]
    assert {name: getattr(resolved, name) for name in given} == given


def test_a_model_of_few_steps_keeps_one() -> None:
    assert [PRESETS["fast"].steps(n) for n in (1, 2, 10, 25)] == [1, 1, 4, 8]


@pytest.mark.parametrize(
    ("own", "preset", "used"), [(-0.6, "balanced", -0.6), (-0.6, "fast", -0.75), (0.0, "fast", -0.75)]
)
def test_a_model_may_want_a_sway_of_its_own(own: float, preset: str, used: float) -> None:
    model = dataclasses.replace(MODEL, s2mel=dataclasses.replace(MODEL.s2mel, sway=own))
    assert InferenceConfig(seed=1).resolved(model).sway == own
    assert InferenceConfig(seed=1, preset=preset).resolved(model).sway == used


def test_options_of_before_there_were_presets() -> None:
    values = {"generation": dataclasses.asdict(GenerationConfig()), "steps": 2, "cfg_rate": 0.7,
              "flow_temperature": 1.0, "seed": 1}  # fmt: skip
    assert build(ResolvedConfig, values, "options") == InferenceConfig(steps=2, seed=1).resolved(MODEL)


def test_solvers_are_those_that_are_implemented() -> None:
    assert set(SOLVERS) == set(IMPLEMENTED)


@pytest.mark.parametrize(
    "change",
    [
        {"preset": "turbo"},
        {"solver": "rk4"},
        {"sway": -1.5},
        {"sway": float("nan")},
        {"guidance_until": 1.1},
        {"prompt_seconds": 0.1},
        {"prompt_seconds": -1.0},
        {"flow_dtype": "float16"},
        {"gpt_weights": "int2"},
    ],
)
def test_values_that_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(change))} must"):
        InferenceConfig(**change)  # type: ignore[arg-type]
