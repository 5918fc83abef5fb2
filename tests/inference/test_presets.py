"""Presets and their options through the whole pipeline: the right length, the same again, and exact means exact."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from indextts2 import IndexTTS2, InferenceConfig, Voice
from indextts2.errors import UsageError
from indextts2.inference import stages
from indextts2.presets import PRESETS
from indextts2.types import SpeechResult
from tests.conftest import relative_l2
from tests.inference.conftest import options

TEXT = "Hello there, this is a test."
FLOW = {
    "solver": ["euler", "midpoint", "heun", "ab2"],
    "sway": [0.0, -0.6],
    "guidance_until": [0.4, 1.0],
    "prompt_seconds": [0.0, 0.5],
    "flow_dtype": ["float32", "bfloat16"],
}


@pytest.fixture(scope="module")
def exact(tiny_tts: IndexTTS2, tiny_voice: Voice) -> SpeechResult:
    return tiny_tts.infer(TEXT, tiny_voice, config=options())


def test_the_exact_preset_is_the_default(tiny_tts: IndexTTS2, tiny_voice: Voice, exact: SpeechResult) -> None:
    found = tiny_tts.infer(TEXT, tiny_voice, config=options(preset="exact"))
    assert found.samples.tobytes() == exact.samples.tobytes()
    assert found.mel.tobytes() == exact.mel.tobytes()


@pytest.mark.parametrize(
    "values", list(itertools.product(*FLOW.values())), ids=lambda values: "-".join(map(str, values))
)
def test_every_combination_of_flow_options(
    tiny_tts: IndexTTS2, tiny_voice: Voice, exact: SpeechResult, values: tuple[object, ...]
) -> None:
    config = options(**dict(zip(FLOW, values, strict=True)))
    found, again = (tiny_tts.infer(TEXT, tiny_voice, config=config) for _ in range(2))
    assert np.array_equal(found.mel_codes, exact.mel_codes)  # the flow does not touch the codes
    assert found.samples.shape == exact.samples.shape and np.isfinite(found.samples).all()
    assert found.samples.tobytes() == again.samples.tobytes()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("weights", ["full", "int8", "int4"])
def test_presets_with_all_weights(tiny_tts: IndexTTS2, tiny_voice: Voice, preset: str, weights: str) -> None:
    config = options(preset=preset, gpt_weights=weights)
    found, again = (tiny_tts.infer(TEXT, tiny_voice, config=config) for _ in range(2))
    frames = sum(stages.target_frames(tiny_tts.models, len(s.mel_codes)) for s in found.segments)
    assert found.mel.shape[1] == frames and len(found.mel_codes) <= 16 * len(found.segments)
    assert np.isfinite(found.samples).all()
    assert found.samples.tobytes() == again.samples.tobytes()


@pytest.mark.parametrize(
    "change", [{"solver": "heun"}, {"solver": "ab2", "steps": 4}, {"sway": -0.5}, {"guidance_until": 0.3},
               {"prompt_seconds": 0.5}, {"flow_dtype": "bfloat16"}]
)  # fmt: skip
def test_every_option_reaches_the_flow(tiny_tts: IndexTTS2, tiny_voice: Voice, change: dict[str, object]) -> None:
    base = options(steps=int(change.get("steps", 2)))  # type: ignore[call-overload]
    plain = tiny_tts.infer(TEXT, tiny_voice, config=base)
    changed = tiny_tts.infer(TEXT, tiny_voice, config=dataclasses.replace(base, **change))
    assert relative_l2(changed.mel, plain.mel) > 1e-5


def test_rounded_weights_reach_the_decoder(
    tiny_tts: IndexTTS2, tiny_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    step = tiny_tts.models.gpt.step
    monkeypatch.setattr(
        tiny_tts.models.gpt, "step", lambda *args: (seen.append(args[3] if len(args) > 3 else "full"), step(*args))[1]
    )
    tiny_tts.infer(TEXT, tiny_voice, config=options(gpt_weights="int8"))
    assert seen.count("int8") >= 14 and seen[-1] == "full"  # the second pass is exact


def test_a_preset_in_low_latency_mode(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    plain, fast = (
        sum(c.samples.size for c in tiny_tts.stream(TEXT, tiny_voice, config=config, mode="low-latency"))
        for config in (options(gpt_weights="full"), options(preset="fast", gpt_weights="full"))
    )
    assert plain == fast > 0


def test_the_prompt_is_cut_to_its_end(tiny_tts: IndexTTS2) -> None:
    models = tiny_tts.models
    assert stages.prompt_frames(models, 500, 0.0) == 500
    assert stages.prompt_frames(models, 500, 2.0) == 172
    assert stages.prompt_frames(models, 100, 2.0) == 100


def test_weights_that_the_device_cannot_have(
    tiny_tts: IndexTTS2, tiny_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indextts2.models.gpt import quantised

    monkeypatch.setattr(quantised, "kernels_work", lambda kind: False)
    with pytest.raises(UsageError, match="gpt_weights int8"):
        tiny_tts.infer(TEXT, tiny_voice, config=options(gpt_weights="int8"))
    found = tiny_tts.infer(TEXT, tiny_voice, config=InferenceConfig(options().generation, steps=1, gpt_weights="auto"))
    assert found.samples.size
