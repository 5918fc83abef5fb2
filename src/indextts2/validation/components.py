"""What each component computes, from arrays by name to arrays by name.

`dump` runs them one after the other on their own results, `validate` each on the golden inputs: the same functions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from indextts2.audio.features import fbank_mean_normalised, log_mel
from indextts2.audio.resampler import emotion_audio, speaker_audio
from indextts2.inference import stages
from indextts2.inference.progress import Run
from indextts2.models.emotion.matrix import merge_emotion_vectors
from indextts2.types import Waveform
from indextts2.validation.mock import recorded

if TYPE_CHECKING:
    from indextts2.config import ResolvedConfig
    from indextts2.inference.emotion import EmotionVector
    from indextts2.inference.pipeline import IndexTTS2

Arrays = dict[str, np.ndarray]
Load = Callable[[str], np.ndarray]


@dataclass(frozen=True)
class Context:
    """The model and the options of the run that is dumped or replayed."""

    tts: IndexTTS2
    text: str
    config: ResolvedConfig
    speaker_rate: int
    emotion_rate: int | None = None
    emotion_alpha: float = 1.0
    emotion_weights: EmotionVector | None = None


def tokenizer(context: Context, load: Load) -> Arrays:
    """Text -> ids of its only segment."""
    return {"input/tokens": context.tts.text_segments(context.text, context.config)[0].ids.numpy()}


def mel(context: Context, load: Load) -> Arrays:
    """Speaker audio -> prompt mel."""
    config = context.tts.config.s2mel.mel
    return {"input/reference_mel": log_mel(_speaker_audio(context, load)[0], config)[None]}


def speaker(context: Context, load: Load) -> Arrays:
    """Speaker audio -> style."""
    fbank = fbank_mean_normalised(_speaker_audio(context, load)[1])
    return {"encoders/speaker_emb": _array(context.tts.models.campplus(_tensor(context, fbank[None])))}


def semantic(context: Context, load: Load) -> Arrays:
    """Speaker and emotion audio -> semantic features, and the codes of the speaker's."""
    models = context.tts.models
    features = stages.semantic_features(models, _speaker_audio(context, load)[1])
    name = "input/emotion_audio" if context.emotion_rate else "input/speaker_audio"
    emotion = emotion_audio(Waveform(load(name), context.emotion_rate or context.speaker_rate))
    return {
        "encoders/semantic_feat": _array(features),
        "encoders/semantic_codes": _array(models.codec.quantize(features)[0]),
        "encoders/emotion_feat": _array(stages.semantic_features(models, emotion)),
    }


def gpt(context: Context, load: Load) -> Arrays:
    """Features and ids -> conditioning, codes, and states of one pass over all of them."""
    models, config = context.tts.models, context.config
    network = models.gpt
    features, emotion = (
        _tensor(context, load(f"encoders/{n}")).to(models.gpt_dtype) for n in ("semantic_feat", "emotion_feat")
    )
    latents = network.speaker_latents(features).float()
    own, other = (network.emotion_vector(f).float() for f in (features, emotion))
    vector = merge_emotion_vectors(own, other, context.emotion_alpha)
    if context.emotion_weights is not None:
        vector = context.tts.blend_emotion(
            context.emotion_weights, _tensor(context, load("encoders/speaker_emb")), vector, config.seed
        )
    segment = stages.TextSegment((), torch.from_numpy(load("input/tokens")))
    generator = torch.Generator().manual_seed(config.seed)
    codes = stages.segment_to_codes(models, latents, vector, segment, config, generator, Run())
    result = {
        "gpt/speaker_latents": latents,
        "gpt/emotion_vector": vector,
        "gpt/mel_codes": codes.codes,
        "gpt/latents": codes.latents,
        **_layers(context, latents, vector, segment, codes.codes),
    }
    return {name: _array(tensor) for name, tensor in result.items()}


def s2mel(context: Context, load: Load) -> Arrays:
    """Codes, latents, prompt and noise -> condition, states of the flow, mel."""
    models, config = context.tts.models, context.config
    prompt_mel = _tensor(context, load("input/reference_mel"))
    _, prompt_embedding = models.codec.quantize(_tensor(context, load("encoders/semantic_feat")))
    prompt = models.length_regulator(prompt_embedding, prompt_mel.shape[-1])
    codes = stages.Codes(_tensor(context, load("gpt/mel_codes")), _tensor(context, load("gpt/latents")), False)
    frames = load("input/flow_noise").shape[-1] - prompt_mel.shape[-1]
    condition = stages.codes_to_condition(models, codes, frames)
    states: list[torch.Tensor] = []
    spectrogram = stages.condition_to_mel(
        models,
        prompt,
        prompt_mel,
        _tensor(context, load("encoders/speaker_emb")),
        condition,
        _tensor(context, load("input/flow_noise")),
        config,
        Run(),
        on_state=lambda x: states.append(x.clone()),
    )
    kept = {f"synthesis/dit_step_{i:02d}": states[i] for i in recorded(len(states))}
    result = {"synthesis/length_reg": condition, **kept, "synthesis/mel_spec": spectrogram}
    return {name: _array(tensor) for name, tensor in result.items()}


def vocoder(context: Context, load: Load) -> Arrays:
    """Mel -> samples."""
    return {"output/audio": stages.mel_to_waveform(context.tts.models, _tensor(context, load("synthesis/mel_spec")))}


COMPONENTS: dict[str, Callable[[Context, Load], Arrays]] = {
    "tokenizer": tokenizer,
    "mel": mel,
    "speaker": speaker,
    "semantic": semantic,
    "gpt": gpt,
    "s2mel": s2mel,
    "vocoder": vocoder,
}


def flow_noise(context: Context, arrays: Arrays) -> np.ndarray:
    """The start noise of the run: what its generator draws after the codes."""
    models, config = context.tts.models, context.config
    generator = torch.Generator().manual_seed(config.seed)
    segment = stages.TextSegment((), torch.from_numpy(arrays["input/tokens"]))
    latents, vector = (_tensor(context, arrays[f"gpt/{n}"]) for n in ("speaker_latents", "emotion_vector"))
    codes = stages.segment_to_codes(models, latents, vector, segment, config, generator, Run())
    frames = stages.target_frames(models, codes.codes.shape[1], config.duration_factor)
    return _array(stages.draw_noise(models, arrays["input/reference_mel"].shape[-1] + frames, config, generator))


def chain(context: Context, inputs: Arrays) -> Arrays:
    """Run every component on the results of those before it, from audio and text alone."""
    arrays = dict(inputs)
    for name, component in COMPONENTS.items():
        if name == "s2mel":
            arrays["input/flow_noise"] = flow_noise(context, arrays)
        arrays |= component(context, arrays.__getitem__)
    return arrays


def _layers(
    context: Context, latents: torch.Tensor, vector: torch.Tensor, segment: stages.TextSegment, codes: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Outputs of the first, middle and last block in one pass over prefix, start token and codes but the last."""
    network = context.tts.models.gpt
    prefix = network.prefix(network.conditioning(latents, vector).to(context.tts.models.gpt_dtype), segment.ids)
    start = codes.new_full((1, 1), network.config.start_mel_token)
    inputs = torch.cat([start, codes[:, :-1]], dim=1)
    state = torch.cat(
        [prefix, network.embed_codes(inputs, torch.arange(inputs.shape[1])[None].to(codes.device))], dim=1
    )
    states = []
    for block in network.gpt.h:
        state = block(state)
        states.append(state)
    return {f"gpt/layer_{i:02d}": states[i] for i in recorded(len(states))}


def _speaker_audio(context: Context, load: Load) -> tuple[np.ndarray, np.ndarray]:
    waveform = Waveform(load("input/speaker_audio"), context.speaker_rate)
    return speaker_audio(waveform, context.tts.sample_rate)


def _tensor(context: Context, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array).to(context.tts.models.device)


def _array(tensor: torch.Tensor) -> np.ndarray:
    if tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.cpu().numpy()
