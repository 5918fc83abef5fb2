"""The one generator of speech: from a text, whole or still arriving, to finished pieces of sound.

`speak` does its work in small steps and gives control back between them. Whoever drives it may do something else in
the meantime, such as the steps of other requests, and advances the decoding of many in one batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from indextts2.errors import TextError, UsageError
from indextts2.inference import stages
from indextts2.models.gpt.generation import Request, advance
from indextts2.text.incremental import sentences

if TYPE_CHECKING:
    from indextts2.config import ResolvedConfig
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2, Speaker
    from indextts2.inference.progress import Run
    from indextts2.inference.voice import Voice

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SegmentSpeech:
    """A finished segment, or a piece of one: its samples (without silence around it), mel (n_mels, N) and codes (M,).

    `count` is the number of segments known so far; `last` says that nothing of this segment follows. A segment that
    comes whole is its own first and last piece.
    """

    index: int
    count: int
    samples: np.ndarray
    mel: np.ndarray
    codes: np.ndarray
    pieces: tuple[str, ...]
    hit_limit: bool
    first: bool = True
    last: bool = True


Step = Request | SegmentSpeech | None
"""A request to be advanced by one decoding step, a piece of speech, or None: other work may be done now."""
Steps = Generator[Step, None, None]


@dataclass
class Utterance:
    """What all segments of one request share."""

    tts: IndexTTS2
    voice: Voice
    emotion: torch.Tensor
    options: ResolvedConfig
    generator: torch.Generator
    run: Run

    def decode(self, segment: stages.TextSegment, index: int) -> Generator[Request | None, None, stages.Codes]:
        """Codes and latents of a segment."""
        self.run.begin_segment(index)
        return stages.decoding(
            self.tts.models, self.voice.speaker_latents, self.emotion, segment, self.options, self.generator, self.run
        )


Render = Callable[[Utterance, list[stages.TextSegment], int], Steps]
"""Speaks segments, the first of which has the index given."""


def speak(
    tts: IndexTTS2,
    text: str | Iterable[str],
    speaker: Speaker,
    emotion: EmotionInput,
    options: ResolvedConfig,
    run: Run,
    render: Render | None = None,
) -> Steps:
    """Speak segment by segment, as `render` says: whole segments by default.

    An iterable of texts is spoken sentence by sentence, each as soon as it is complete. With `target_seconds` all
    segments are decoded before the first one is heard, since the length of each depends on the length of all.

    Raises:
        UsageError: `target_seconds` of a text whose end is not known.
        TextError: nothing in the whole text can be spoken.
    """
    if options.target_seconds is not None and not isinstance(text, str):
        raise UsageError("target_seconds needs the whole text at once; give one string")
    utterance: Utterance | None = None
    for script, segments in _scripts(tts, text, options, run):
        if utterance is None:
            voice = tts.voice(speaker, run=run)
            vector = tts.emotion_vector(voice, emotion, script, run, options.seed)
            utterance = Utterance(tts, voice, vector, options, torch.Generator().manual_seed(options.seed), run)
        yield None
        yield from (render or whole_segments)(utterance, segments, run.segments - len(segments))


@torch.inference_mode()
def speak_alone(tts: IndexTTS2, steps: Steps) -> Iterator[SegmentSpeech]:
    """Drive one request with nothing in between."""
    gpt = tts.models.gpt
    for step in steps:
        if isinstance(step, Request):
            advance(gpt, [step])
        elif step is not None:
            yield step


def whole_segments(utterance: Utterance, segments: list[stages.TextSegment], first_index: int) -> Steps:
    """Speak segments, each in one piece."""
    tts, options, run = utterance.tts, utterance.options, utterance.run
    decoded: list[stages.Codes] = []
    factor = options.duration_factor
    if options.target_seconds is not None:
        for number, segment in enumerate(segments):
            decoded.append((yield from utterance.decode(segment, first_index + number)))
        factor = tts.target_factor(decoded, options)
    for number, segment in enumerate(segments):
        index = first_index + number
        codes = decoded[number] if decoded else (yield from utterance.decode(segment, index))
        run.begin_segment(index)
        warn_of_limit(codes.hit_limit, index, options)
        with run.stage("flow"):
            frames = stages.target_frames(tts.models, codes.codes.shape[1], factor)
            mel = yield from _segment_mel(utterance, codes, frames)
        yield None
        with run.stage("vocoder"):
            run.report("vocoder", 0, 1)
            samples = stages.mel_to_waveform(tts.models, mel)
            run.report("vocoder", 1, 1)
        yield SegmentSpeech(
            index,
            run.segments,
            samples,
            mel[0].cpu().numpy(),
            codes.codes[0].cpu().numpy(),
            segment.pieces,
            codes.hit_limit,
        )


def _segment_mel(utterance: Utterance, codes: stages.Codes, frames: int) -> Generator[None, None, torch.Tensor]:
    models, voice, options = utterance.tts.models, utterance.voice, utterance.options
    condition = stages.codes_to_condition(models, codes, frames)
    noise = stages.draw_noise(models, voice.prompt_mel.shape[-1] + frames, options, utterance.generator)
    return stages.flowing(
        models, voice.prompt_condition, voice.prompt_mel, voice.style, condition, noise, options, utterance.run
    )


def warn_of_limit(hit_limit: bool, index: int, options: ResolvedConfig) -> None:
    """Log that a segment was cut off."""
    if hit_limit:
        log.warning(
            "segment %d reached the limit of %d codes before its end; raise max_mel_tokens or lower "
            "max_text_tokens_per_segment",
            index + 1,
            options.generation.max_mel_tokens,
        )


def _scripts(
    tts: IndexTTS2, text: str | Iterable[str], options: ResolvedConfig, run: Run
) -> Iterator[tuple[str, list[stages.TextSegment]]]:
    """Texts with their segments, counted in `run`. What cannot be spoken within a stream of texts is left out."""
    run.segments = 0
    for script in [text] if isinstance(text, str) else sentences(text):
        run.check()
        try:
            with run.stage("text"):
                segments = tts.text_segments(script, options)
        except TextError as error:
            if isinstance(text, str):
                raise
            log.warning("a sentence is left out: %s", error)
            continue
        run.segments += len(segments)
        run.text_tokens += sum(len(segment.ids) for segment in segments)
        yield script, segments
    if not run.segments:
        raise TextError("the stream of text ended without anything that can be spoken; give words")
