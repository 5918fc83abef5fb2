"""Record a golden set from a real run."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from indextts2.audio.loader import load_reference
from indextts2.config import InferenceConfig, ResolvedConfig
from indextts2.errors import UsageError
from indextts2.inference.emotion import EmotionAudio, EmotionVector, EmotionWords, as_emotion
from indextts2.validation.components import Context, chain
from indextts2.validation.golden import GoldenSet

if TYPE_CHECKING:
    from pathlib import Path

    from indextts2.inference.pipeline import EmotionInput, IndexTTS2
    from indextts2.types import Waveform


@torch.inference_mode()
def record(
    tts: IndexTTS2,
    text: str,
    speaker: str | Path | Waveform,
    emotion: EmotionInput = None,
    config: InferenceConfig | None = None,
) -> GoldenSet:
    """Speak one segment and keep every array on the way.

    Raises:
        UsageError: the text makes more than one segment, or the options cannot be replayed from a folder.
    """
    options = (config or InferenceConfig()).resolved(tts.config)
    if options.target_seconds is not None:
        raise UsageError("a golden set cannot hold target_seconds; use duration_factor")
    segments = tts.text_segments(text, options)
    if len(segments) != 1:
        raise UsageError(f"the text makes {len(segments)} segments and a golden set holds one; shorten it")
    wanted = as_emotion(emotion)
    if isinstance(wanted, EmotionWords):
        wanted = EmotionVector(tuple(tts.words_to_vector(wanted.text or text)), wanted.alpha, wanted.random_rows)
    reference = load_reference(speaker)
    inputs = {"input/speaker_audio": reference.samples}
    facts: dict[str, Any] = {
        "mock": False,
        "text": text,
        "seed": options.seed,
        "options": dataclasses.asdict(options),
        "speaker_sample_rate": reference.sample_rate,
        "emotion_sample_rate": None,
        "emotion": None,
        "emotion_alpha": 1.0,
        "model": _model_facts(tts),
    }
    if isinstance(wanted, EmotionAudio):
        other = load_reference(wanted.audio)
        inputs["input/emotion_audio"] = other.samples
        facts |= {"emotion_sample_rate": other.sample_rate, "emotion_alpha": wanted.alpha}
    elif wanted is not None:
        facts["emotion"] = dataclasses.asdict(wanted)
    golden = GoldenSet(facts)
    golden.arrays = chain(context_of(tts, golden), inputs)
    return golden


def _model_facts(tts: IndexTTS2) -> dict[str, Any]:
    """Which model it was: name, fingerprint and the SHA-256 of every file."""
    from indextts2.checkpoints.check import check

    assert tts.directory is not None
    report = check(tts.directory.path, config_path=tts.directory.config_path, hash_files=True)
    files = {file.path: file.sha256 for file in report.files if file.sha256 is not None}
    return {"name": tts.directory.path.name, "fingerprint": tts.models.fingerprint, "files": files}


def context_of(tts: IndexTTS2, golden: GoldenSet) -> Context:
    """The run that a golden set describes."""
    from indextts2.config import build

    facts = golden.facts
    emotion = facts["emotion"]
    if emotion is not None:
        emotion = EmotionVector(tuple(emotion["weights"]), emotion["alpha"], emotion["random_rows"])
    return Context(
        tts=tts,
        text=facts["text"],
        config=build(ResolvedConfig, facts["options"], "options"),
        speaker_rate=facts["speaker_sample_rate"],
        emotion_rate=facts["emotion_sample_rate"],
        emotion_alpha=facts["emotion_alpha"],
        emotion_weights=emotion,
    )
