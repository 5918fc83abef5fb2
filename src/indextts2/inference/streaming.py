"""Speech while it is made: chunks of audio from a text, which may itself still be arriving."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from indextts2.config import InferenceConfig
from indextts2.errors import UsageError
from indextts2.inference.progress import CancelCheck, ProgressCallback, Run
from indextts2.types import AudioChunk

if TYPE_CHECKING:
    from indextts2.config import ResolvedConfig
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2, Speaker

Mode = Literal["exact", "low-latency"]
MODES: tuple[str, ...] = get_args(Mode)


def stream_segments(
    tts: IndexTTS2, text: str, speaker: Speaker, emotion: EmotionInput, options: ResolvedConfig, run: Run
) -> Iterator[AudioChunk]:
    """Whole segments, each with the silence before it."""
    from indextts2.inference.pipeline import silence_samples

    silence = silence_samples(options, tts.sample_rate)
    for speech in tts.segments(text, speaker, emotion, options, run):
        samples = np.concatenate((silence, speech.samples)) if speech.index else speech.samples
        said = tts.tokenizer.to_text(speech.pieces)
        run.codes += len(speech.codes)
        yield AudioChunk(speech.index, samples, tts.sample_rate, said, speech.index + 1 == speech.count)


def stream(
    tts: IndexTTS2,
    text: str | Iterable[str],
    speaker: Speaker,
    emotion: EmotionInput = None,
    config: InferenceConfig | None = None,
    *,
    mode: Mode = "exact",
    cancel: CancelCheck | None = None,
    on_progress: ProgressCallback | None = None,
) -> Iterator[AudioChunk]:
    """See `IndexTTS2.stream`."""
    check_mode(mode)
    options = (config or InferenceConfig()).resolved(tts.config)
    run = Run(on_progress, cancel)
    for part in as_texts(text):
        yield from stream_segments(tts, part, speaker, emotion, options, run)


def as_texts(text: str | Iterable[str]) -> Iterator[str]:
    """A text as it is, an iterable of texts one by one."""
    if isinstance(text, str):
        yield text
    else:
        yield from text


def check_mode(mode: str) -> None:
    """Raise UsageError unless `mode` is one of MODES."""
    if mode not in MODES:
        raise UsageError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
