"""Speech below the sentence: a segment in chunks, each made while the next codes are still being decoded.

Axes: M codes so far, U mel frames so far, C condition channels, H samples per frame.

Decoding, the latents and the vocoder can be cut exactly. The length regulator and the flow cannot: both look at the
whole segment (10 section 7). Here a chunk of the flow sees the reference, some of the mel that is already out, and a
few frames of look-ahead; the regulator takes its statistics over what there is so far.

The mel that is out is no further prompt: where prompts were other recordings in training, a network begins anew after a
prompt, from silence. Its frames are led along the straight path from their noise to that mel instead, as in training,
and the new frames continue them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from indextts2.errors import ConfigError
from indextts2.inference import stages
from indextts2.inference.speaking import SegmentSpeech, Steps, Utterance, warn_of_limit
from indextts2.models.gpt.generation import Request
from indextts2.models.gpt.unified_voice import LatentStream

if TYPE_CHECKING:
    from indextts2.models.vocoder.bigvgan import BigVGAN

NOISE_BLOCK_FRAMES = 64
MIN_FRAMES = 4


@dataclass(frozen=True)
class ChunkPlan:
    """How a segment is cut; all sizes in mel frames (86 are a second at 22.05 kHz).

    A chunk needs the codes of its own frames and of `look_ahead_frames` more. It continues `context_frames` of the mel
    before it. `prompt_frames` uses only that much of the end of the reference (None: all of it): every chunk computes
    it again, so it decides how fast chunks are. `first_steps` are the flow steps of a segment's first chunk (None: as
    of all others). Neighbouring chunks are cross-faded over `fade_ms`, at most four frames.
    """

    first_frames: int = 24
    growth: float = 2.0
    max_frames: int = 344
    context_frames: int = 43
    look_ahead_frames: int = 22
    prompt_frames: int | None = 172
    first_steps: int | None = None
    fade_ms: float = 15.0

    def __post_init__(self) -> None:
        for name in ("first_frames", "max_frames", "look_ahead_frames"):
            if getattr(self, name) < MIN_FRAMES:
                raise ConfigError(f"{name} must be at least {MIN_FRAMES}, not {getattr(self, name)}")
        if self.context_frames < 0:
            raise ConfigError(f"context_frames must be 0 or more, not {self.context_frames}")
        if not 1.0 <= self.growth <= 16.0:
            raise ConfigError(f"growth must lie in [1, 16], not {self.growth!r}")
        for name in ("prompt_frames", "first_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, not {value}")
        if not 0.0 <= self.fade_ms <= 20.0:
            raise ConfigError(f"fade_ms must lie in [0, 20], not {self.fade_ms!r}")

    def frames(self, chunk: int) -> int:
        """Frames of the chunk with this number."""
        size: float = self.first_frames
        for _ in range(chunk):
            if size >= self.max_frames:
                break
            size *= self.growth
        return min(round(size), self.max_frames)


class FrameNoise:
    """Start noise that belongs to absolute frames, however a segment is cut."""

    def __init__(self, mel_bands: int, generator: torch.Generator) -> None:
        self._mel_bands = mel_bands
        self._generator = generator
        self._blocks: list[torch.Tensor] = []

    def take(self, start: int, stop: int) -> torch.Tensor:
        """Noise (1, n_mels, stop - start) of these frames, standard normal."""
        while len(self._blocks) * NOISE_BLOCK_FRAMES < stop:
            shape = (1, self._mel_bands, NOISE_BLOCK_FRAMES)
            self._blocks.append(torch.randn(shape, generator=self._generator, device=self._generator.device))
        return torch.cat(self._blocks, dim=2)[:, :, start:stop]


class CodeStream:
    """Decodes a segment as far as it is asked to, and holds the condition that follows from its codes so far."""

    def __init__(self, utterance: Utterance, segment: stages.TextSegment) -> None:
        models = utterance.tts.models
        self._models, self._utterance = models, utterance
        self.request = stages.start_request(
            models, utterance.voice.speaker_latents, utterance.emotion, segment, utterance.options, utterance.generator
        )
        self._latents: LatentStream | None = None
        if models.gpt.config.skips_first_mel_position:
            self._latents = LatentStream.beside(models.gpt, self.request.prompt)
        self._semantic: list[torch.Tensor] = []  # (1, m, D) each
        self._pending: list[int] = []
        self.codes: list[int] = []

    @property
    def finished(self) -> bool:
        """Whether all codes are known."""
        return self.request.finished

    @property
    def frames(self) -> int:
        """Mel frames that the codes so far fill."""
        count = len(self.codes)
        return stages.target_frames(self._models, count, self._utterance.options.duration_factor) if count else 0

    def until(self, frames: int) -> Generator[Request | None, None, None]:
        """Decode until there are this many frames or no more codes; then bring the semantic rows up to date."""
        run = self._utterance.run
        with run.stage("gpt"):
            kept = self._collect()
            while self.frames < frames and not self.finished:
                yield self.request
                run.check()
                kept += self._collect()
        yield None
        with run.stage("gpt_latents"):
            if self._pending:
                self._extend(kept)

    def _collect(self) -> list[torch.Tensor]:
        """Take the new codes; the latents that came with them."""
        codes, latents = self.request.take_with_latents()
        stages.report_codes(self._utterance.run, codes, self._utterance.options)
        self.codes += codes
        self._pending += codes
        return [] if latents is None else [latents]

    def _extend(self, kept: list[torch.Tensor]) -> None:
        models = self._models
        codes = torch.tensor(self._pending, device=models.device)
        latents = self._latents.extend(codes) if self._latents is not None else torch.cat(kept, dim=1)
        self._semantic.append(models.latent_projection(latents.float()) + models.codec.embed(codes[None]))
        self._pending = []

    def condition(self) -> torch.Tensor:
        """Condition (1, U, C) of all frames so far: the code of a frame depends on its absolute position only."""
        semantic = torch.cat(self._semantic, dim=1)
        ratio = self._models.config.s2mel.frames_per_code * self._utterance.options.duration_factor
        index = (torch.arange(self.frames, dtype=torch.float64) / ratio).long().clamp(max=semantic.shape[1] - 1)
        return self._models.length_regulator(semantic[:, index.to(semantic.device)], self.frames)


class VocoderStream:
    """Samples of a mel that comes in pieces.

    Every piece is computed with its exact halo on the left and the look-ahead on the right. What a piece says about
    its last samples is faded into what the next one says, whose right context is no longer a guess.
    """

    def __init__(self, bigvgan: BigVGAN, fade_samples: int) -> None:
        self._bigvgan = bigvgan
        self._hop = bigvgan.config.hop_size
        ramp = torch.linspace(0, torch.pi / 2, fade_samples + 2, dtype=torch.float64)[1:-1]
        self._rise = torch.sin(ramp).square().float().numpy()
        self._mel: torch.Tensor | None = None  # (1, n_mels, n)
        self._given = 0
        self._tail = np.zeros(0, np.float32)

    def push(self, mel: torch.Tensor, ahead: torch.Tensor | None) -> np.ndarray:
        """Take the next frames (1, n_mels, n) and a guess of those behind (None: nothing follows); their samples.

        Samples of the last few milliseconds are held back while something follows.
        """
        # All of it is kept, a few hundred bytes per frame: the phase of a source counts from the start.
        self._mel = mel if self._mel is None else torch.cat((self._mel, mel), dim=2)
        whole = self._mel if ahead is None else torch.cat((self._mel, ahead), dim=2)
        frames, first = self._mel.shape[2], self._given // self._hop
        samples = self._bigvgan.window(whole, first, frames)[0, 0, self._given - first * self._hop :]
        wave = samples.float().cpu().numpy()
        fade = len(self._tail)
        wave[:fade] = self._tail * (1 - self._rise[:fade]) + wave[:fade] * self._rise[:fade]
        held = 0 if ahead is None else len(self._rise)
        self._tail = wave[len(wave) - held :].copy()
        self._given = frames * self._hop - held
        return wave[: len(wave) - held].copy()


class MelStream:
    """Runs the flow chunk by chunk."""

    def __init__(self, utterance: Utterance, plan: ChunkPlan, noise: FrameNoise) -> None:
        self._utterance, self._plan, self._noise = utterance, plan, noise
        prompt = utterance.voice.prompt_mel.shape[2]
        first = 0 if plan.prompt_frames is None else max(0, prompt - plan.prompt_frames)
        self._prompt_mel = utterance.voice.prompt_mel[:, :, first:]
        self._prompt_condition = utterance.voice.prompt_condition[:, first:]
        self._context = self._prompt_mel[:, :, :0]
        self.done = 0

    def push(self, condition: torch.Tensor, frames: int, steps: int) -> Generator[None, None, torch.Tensor]:
        """Mel of the next `frames` frames and of all behind them that `condition` (1, U, C) reaches."""
        models, voice = self._utterance.tts.models, self._utterance.voice
        options = dataclasses.replace(self._utterance.options, steps=steps)
        held = self._context.shape[2]
        begin = self.done - held
        new = self._noise.take(begin, condition.shape[1]) * options.flow_temperature
        noise = torch.nn.functional.pad(new.to(models.device), (self._prompt_mel.shape[2], 0))
        mel = yield from stages.flowing(
            models, self._prompt_condition, self._prompt_mel, voice.style, condition[:, begin:], noise, options,
            self._utterance.run, known=self._context if held else None,
        )  # fmt: skip
        mel = mel[:, :, held:]
        known = torch.cat((self._context, mel[:, :, :frames]), dim=2)
        self._context = known[:, :, max(0, known.shape[2] - self._plan.context_frames) :]
        self.done += frames
        return mel


def chunked_segments(
    utterance: Utterance, segments: list[stages.TextSegment], first_index: int, plan: ChunkPlan
) -> Steps:
    """Speak segments, each in chunks."""
    for number, segment in enumerate(segments):
        yield from chunked_segment(utterance, segment, first_index + number, plan)


def chunked_segment(utterance: Utterance, segment: stages.TextSegment, index: int, plan: ChunkPlan) -> Steps:
    """Speak one segment in chunks."""
    tts, options, run = utterance.tts, utterance.options, utterance.run
    models, mel_config = tts.models, tts.config.s2mel.mel
    run.begin_segment(index)
    codes = CodeStream(utterance, segment)
    noise_generator = torch.Generator().manual_seed(_segment_seed(options.seed, index))
    mels = MelStream(utterance, plan, FrameNoise(mel_config.n_mels, noise_generator))
    vocoder = VocoderStream(
        models.bigvgan, min(int(plan.fade_ms * mel_config.sample_rate / 1000), MIN_FRAMES * mel_config.hop_length)
    )
    chunk = given = 0
    last = hit_limit = False
    while not last:
        frames = plan.frames(chunk)
        reach = mels.done + frames + plan.look_ahead_frames
        yield from codes.until(reach)
        last = codes.finished and codes.frames <= reach
        if last:
            hit_limit = codes.request.result().hit_limit  # raises if there is no code at all
            warn_of_limit(hit_limit, index, options)
            frames, reach = codes.frames - mels.done, codes.frames
        with run.stage("flow"):
            steps = plan.first_steps if chunk == 0 and plan.first_steps is not None else options.steps
            mel = yield from mels.push(codes.condition()[:, :reach], frames, steps)
        yield None
        with run.stage("vocoder"):
            run.report("vocoder", chunk, None)
            samples = vocoder.push(mel[:, :, :frames], None if last else mel[:, :, frames:])
        yield SegmentSpeech(
            index,
            run.segments,
            samples,
            mel[0, :, :frames].cpu().numpy(),
            np.array(codes.codes[given:], dtype=np.int64),
            segment.pieces,
            hit_limit,
            first=chunk == 0,
            last=last,
        )
        given = len(codes.codes)
        chunk += 1
    _draw_like_whole(utterance, codes.frames)


def _draw_like_whole(utterance: Utterance, frames: int) -> None:
    """Draw what the exact mode draws for the noise of a segment, so that both decode the same codes after it."""
    stages.draw_noise(
        utterance.tts.models, utterance.voice.prompt_mel.shape[2] + frames, utterance.options, utterance.generator
    )


def _segment_seed(seed: int, index: int) -> int:
    """A seed of its own for the noise of each segment."""
    return int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0] >> np.uint64(1))
