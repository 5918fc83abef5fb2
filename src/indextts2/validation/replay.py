"""Replay a golden set: recompute its arrays with the model at hand and compare."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch

from indextts2.errors import ValidationError
from indextts2.validation.components import COMPONENTS, Arrays, Context, chain
from indextts2.validation.golden import Comparison, GoldenSet, compare
from indextts2.validation.record import context_of

if TYPE_CHECKING:
    from indextts2.inference.pipeline import IndexTTS2

log = logging.getLogger(__name__)

# `full` starts from audio and text alone and is judged by what comes out.
FULL = ("input/tokens", "encoders/semantic_codes", "gpt/mel_codes", "synthesis/mel_spec", "output/audio")


@torch.inference_mode()
def validate(tts: IndexTTS2, golden: GoldenSet, components: list[str], atol: float, rtol: float) -> list[Comparison]:
    """Recompute `components` (names of COMPONENTS, and `full`) and compare array by array.

    An array that is missing, unreadable or of another shape than the manifest says is a failed comparison.

    Raises:
        ValidationError: the set is a mock, or a component does not exist.
    """
    if golden.is_mock:
        raise ValidationError("this golden set is a mock made without a model; there is nothing to validate against")
    unknown = [name for name in components if name not in (*COMPONENTS, "full")]
    if unknown:
        raise ValidationError(f"no component {unknown[0]!r}; there are {', '.join([*COMPONENTS, 'full'])}")
    made_with = golden.facts["model"]["fingerprint"]
    if made_with != tts.models.fingerprint:
        log.warning("the set was made with model %s, the loaded one is %s", made_with, tts.models.fingerprint)
    context = context_of(tts, golden)
    return [row for name in components for row in _component(name, context, golden, atol, rtol)]


def _component(name: str, context: Context, golden: GoldenSet, atol: float, rtol: float) -> list[Comparison]:
    try:
        if name == "full":
            inputs = {
                n: golden.load(n) for n in ("input/speaker_audio", "input/emotion_audio") if n in golden.facts["arrays"]
            }
            actual: Arrays = {n: a for n, a in chain(context, inputs).items() if n in FULL}
        else:
            actual = COMPONENTS[name](context, golden.load)
    except ValidationError as error:
        return [Comparison(name, "inputs", (), float("nan"), float("nan"), str(error))]
    return [_compare(name, array, actual[array], golden, atol, rtol) for array in actual]


def _compare(component: str, name: str, array: np.ndarray, golden: GoldenSet, atol: float, rtol: float) -> Comparison:
    try:
        return compare(component, name, array, golden.load(name), atol, rtol)
    except ValidationError as error:
        return Comparison(component, name, array.shape, float("nan"), float("nan"), str(error))
