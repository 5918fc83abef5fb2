"""The path from text and audio to sound: one function per arrow. Start reading in `pipeline.py`.

Axes: B batch (1 everywhere here), T semantic frames, P prompt mel frames, N target mel frames, M codes, D GPT width.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar, cast

import numpy as np
import torch

from indextts2.audio.features import fbank_mean_normalised, log_mel, seamless_features
from indextts2.audio.resampler import emotion_audio, speaker_audio
from indextts2.inference.voice import Voice, content_key
from indextts2.models.dense import computes_bfloat16
from indextts2.models.gpt.generation import Request, advance
from indextts2.models.gpt.quantised import automatic_weights
from indextts2.models.s2mel.flow_matching import integration, start_noise
from indextts2.models.s2mel.length_regulator import target_mel_frames
from indextts2.models.s2mel.solvers import velocities_per_step
from indextts2.text.segmenter import split_segments
from indextts2.text.tokenizer import require_speech

StateCallback = Callable[[torch.Tensor], None]
T = TypeVar("T")

if TYPE_CHECKING:
    from indextts2.checkpoints.loading import Models
    from indextts2.config import InferenceConfig, ResolvedConfig
    from indextts2.inference.progress import Run
    from indextts2.text.tokenizer import TextTokenizer
    from indextts2.types import Waveform


@dataclass(frozen=True)
class TextSegment:
    """Pieces and ids of one segment."""

    pieces: tuple[str, ...]
    ids: torch.Tensor


# --- reference audio -> voice -----------------------------------------------------------------------------------------


def semantic_features(models: Models, audio_16k: np.ndarray) -> torch.Tensor:
    """16 kHz samples (N,) -> normalised w2v-BERT features (1, T, hidden)."""
    features, mask = seamless_features(audio_16k)
    hidden = models.w2v_bert(_batch(models, features), _batch(models, mask))
    return models.feature_statistics(hidden)


def encode_voice(models: Models, reference: Waveform, run: Run) -> Voice:
    """Reference audio -> Voice: all that the speaker contributes, computed once."""
    with run.stage("mel"):
        audio_22k, audio_16k = speaker_audio(reference, models.config.s2mel.mel.sample_rate)
        prompt_mel = _batch(models, log_mel(audio_22k, models.config.s2mel.mel))
    with run.stage("semantic_encoding"):
        features = semantic_features(models, audio_16k)
        _, prompt_embedding = models.codec.quantize(features)
    with run.stage("speaker_encoding"):
        style = models.campplus(_batch(models, fbank_mean_normalised(audio_16k)))
        speaker_latents = models.gpt.speaker_latents(features.to(models.gpt_dtype)).float()
        prompt_condition = models.length_regulator(prompt_embedding, prompt_mel.shape[-1])
    with run.stage("emotion_encoding"):
        own_emotion = models.gpt.emotion_vector(features.to(models.gpt_dtype)).float()
        audio_emotion = encode_emotion(models, reference)
    return Voice(
        speaker_latents,
        own_emotion,
        audio_emotion,
        style,
        prompt_condition,
        prompt_mel,
        model=models.fingerprint,
        source=content_key(reference),
        seconds=reference.duration,
    )


def encode_emotion(models: Models, reference: Waveform) -> torch.Tensor:
    """Emotion audio -> emotion vector (1, D), by the emotion resampling path (01 section 6.1)."""
    features = semantic_features(models, emotion_audio(reference))
    return models.gpt.emotion_vector(features.to(models.gpt_dtype)).float()


# --- text -> segments of ids ------------------------------------------------------------------------------------------


def text_to_segments(
    tokenizer: TextTokenizer, text: str, config: InferenceConfig, max_text_tokens: int
) -> list[TextSegment]:
    """Text -> segments of token ids.

    Raises:
        TextError: nothing in the text can be spoken.
    """
    pieces = tokenizer.tokenize(text)
    require_speech(text, pieces, tokenizer)
    longest, quick = config.max_text_tokens_per_segment, config.quick_streaming_tokens
    segments = split_segments(pieces, longest, quick, tokenizer.marks, max_text_tokens)
    return [TextSegment(tuple(s), torch.tensor(tokenizer.to_ids(s), dtype=torch.int64)) for s in segments]


# --- ids -> codes and latents -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Codes:
    """Semantic codes (1, M) int64 with their latents (1, M, D) float32; `hit_limit`: no stop token was drawn."""

    codes: torch.Tensor
    latents: torch.Tensor
    hit_limit: bool


def decoding(
    models: Models,
    speaker_latents: torch.Tensor,
    emotion: torch.Tensor,
    segment: TextSegment,
    config: ResolvedConfig,
    generator: torch.Generator,
    run: Run,
) -> Generator[Request | None, None, Codes]:
    """Autoregressive decoding of one segment, then its latents on the same prefix.

    Args:
        speaker_latents: (1, n, D) of the voice.
        emotion: vector (1, D).

    Yields:
        The request, whenever it is to be advanced by one step; None between two other pieces of work.

    Raises:
        GenerationError: the model stopped before the first code.
    """
    gpt = models.gpt
    with run.stage("gpt"):
        request = start_request(models, speaker_latents, emotion, segment, config, generator)
        while not request.finished:
            report_codes(run, request.take_settled(), config)
            yield request
            run.check()
        report_codes(run, request.take_rest(), config)
        generation = request.result()
    yield None
    with run.stage("gpt_latents"):
        latents = generation.latents
        if latents is None:
            latents = gpt.latents(generation.prompt, generation.codes)
    return Codes(generation.codes[None].to(models.device), latents.float(), generation.hit_limit)


def start_request(
    models: Models,
    speaker_latents: torch.Tensor,
    emotion: torch.Tensor,
    segment: TextSegment,
    config: ResolvedConfig,
    generator: torch.Generator,
) -> Request:
    """The prefilled request of a segment."""
    gpt = models.gpt
    prefix = gpt.prefix(gpt.conditioning(speaker_latents, emotion).to(models.gpt_dtype), segment.ids)
    return Request(gpt, prefix, config.generation, generator, gpt_weights(models, config.gpt_weights))


def gpt_weights(models: Models, name: str) -> str:
    """The kind of the decoder's weights that the option names."""
    gpt = models.config.gpt
    return automatic_weights(models.device, gpt.model_dim, gpt.layers) if name == "auto" else name


def report_codes(run: Run, codes: list[int], config: ResolvedConfig) -> None:
    """Count and report codes that were drawn."""
    for _ in codes:
        run.count_code(config.generation.max_mel_tokens)


def segment_to_codes(
    models: Models,
    speaker_latents: torch.Tensor,
    emotion: torch.Tensor,
    segment: TextSegment,
    config: ResolvedConfig,
    generator: torch.Generator,
    run: Run,
) -> Codes:
    """`decoding` in one go."""
    return finish(models, decoding(models, speaker_latents, emotion, segment, config, generator, run))


def finish(models: Models, running: Generator[Request | None, None, T]) -> T:
    """Run a generator of steps to its end, advancing each request that it yields; its result."""
    while True:
        try:
            request = next(running)
        except StopIteration as end:
            return cast("T", end.value)
        if request is not None:
            advance(models.gpt, [request])


# --- codes -> mel -> waveform -----------------------------------------------------------------------------------------


def target_frames(models: Models, code_count: int, factor: float = 1.0) -> int:
    """Mel frames for `code_count` codes at `factor` times their natural length, at least 1."""
    frames = target_mel_frames(torch.tensor(code_count), models.config.s2mel.frames_per_code * factor)
    return max(1, int(frames))


def codes_to_condition(models: Models, codes: Codes, frames: int) -> torch.Tensor:
    """Codes and latents -> condition of the flow (1, N, C)."""
    semantic = models.latent_projection(codes.latents) + models.codec.embed(codes.codes)
    return models.length_regulator(semantic, frames)


def draw_noise(models: Models, frames: int, config: ResolvedConfig, generator: torch.Generator) -> torch.Tensor:
    """Start noise of the flow (1, n_mels, frames), prompt and target."""
    noise = start_noise(models.config.s2mel.mel.n_mels, frames, generator)
    return (noise * config.flow_temperature).to(models.device)


def flow_dtype(models: Models, name: str) -> torch.dtype:
    """The type of the flow's products that the option names."""
    reduced = name == "bfloat16" or (name == "auto" and computes_bfloat16(models.device.type))
    return torch.bfloat16 if reduced else torch.float32


def prompt_frames(models: Models, frames: int, seconds: float) -> int:
    """Frames of a prompt of `frames` that the flow sees; 0 s is all of it."""
    mel = models.config.s2mel.mel
    return min(frames, max(1, round(seconds * mel.sample_rate / mel.hop_length))) if seconds else frames


def flowing(
    models: Models,
    prompt_condition: torch.Tensor,
    prompt_mel: torch.Tensor,
    style: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    config: ResolvedConfig,
    run: Run,
    on_state: StateCallback | None = None,
    known: torch.Tensor | None = None,
) -> Generator[None, None, torch.Tensor]:
    """Flow matching: condition (1, N, C) with the voice's prompt -> mel (1, n_mels, N). Yields before every velocity.

    With `prompt_seconds` only the end of the prompt is seen: P then counts the frames that are left.

    Args:
        noise: (1, n_mels, frames of the whole prompt + N), see `draw_noise`.
        known: mel (1, n_mels, K) of the first K frames, if they are to be continued.
        on_state: called with the state (1, n_mels, P + N) at which each velocity is taken.
    """
    velocities = config.steps * velocities_per_step(config.solver)

    def on_step(index: int, state: torch.Tensor, _velocity: torch.Tensor) -> None:
        run.report("flow", index + 1, velocities)
        if on_state is not None:
            on_state(state)

    unseen = prompt_mel.shape[-1] - prompt_frames(models, prompt_mel.shape[-1], config.prompt_seconds)
    prompt_mel, prompt_condition = prompt_mel[:, :, unseen:], prompt_condition[:, unseen:]
    mu = torch.cat([prompt_condition, condition], dim=1)
    running = integration(
        models.dit, mu, prompt_mel, style, noise[:, :, unseen:], steps=config.steps, cfg_rate=config.cfg_rate,
        solver=config.solver, sway=config.sway, guidance_until=config.guidance_until,
        dtype=flow_dtype(models, config.flow_dtype), known=known, on_step=on_step,
    )  # fmt: skip
    while True:
        try:
            next(running)
        except StopIteration as end:
            return cast("torch.Tensor", end.value)[:, :, prompt_mel.shape[-1] :]
        yield
        run.check()


def condition_to_mel(
    models: Models,
    prompt_condition: torch.Tensor,
    prompt_mel: torch.Tensor,
    style: torch.Tensor,
    condition: torch.Tensor,
    noise: torch.Tensor,
    config: ResolvedConfig,
    run: Run,
    on_state: StateCallback | None = None,
) -> torch.Tensor:
    """`flowing` in one go."""
    running = flowing(models, prompt_condition, prompt_mel, style, condition, noise, config, run, on_state)
    return finish(models, running)


def mel_to_waveform(models: Models, mel: torch.Tensor) -> np.ndarray:
    """Mel (1, n_mels, N) -> samples (hop * N,) float32 in [-1, 1]."""
    return models.bigvgan(mel)[0, 0].float().cpu().numpy()


def _batch(models: Models, array: np.ndarray) -> torch.Tensor:
    """Numpy array -> tensor with a batch axis on the model's device."""
    return torch.from_numpy(np.ascontiguousarray(array))[None].to(models.device)
