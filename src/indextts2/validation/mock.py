"""A model-free golden set: seeded random arrays in the right places, marked as a mock so that nothing trusts it."""

from __future__ import annotations

import numpy as np

from indextts2.config import ModelConfig
from indextts2.validation.golden import GoldenSet

SECONDS = 3.0
CODES = 40
TOKENS = 12


def mock_golden_set(text: str, seed: int, config: ModelConfig | None = None) -> GoldenSet:
    """Arrays of the shapes that a run on 3 s of audio would give under `config`, filled from `seed`."""
    config = config or ModelConfig()
    rng = np.random.default_rng(seed)
    mel, gpt, hidden = config.s2mel.mel, config.gpt, config.semantic_codec.hidden_size
    samples = int(SECONDS * mel.sample_rate)
    frames, semantic = samples // mel.hop_length, int(SECONDS * 50)
    target = int(np.float32(CODES) * np.float32(config.s2mel.frames_per_code))
    rows = gpt.condition_latents + 2 + TOKENS + 2 + CODES
    steps = config.s2mel.steps
    shapes = {
        "input/speaker_audio": (samples,),
        "input/reference_mel": (1, mel.n_mels, frames),
        "input/flow_noise": (1, mel.n_mels, frames + target),
        "encoders/speaker_emb": (1, config.s2mel.style_dim),
        "encoders/semantic_feat": (1, semantic, hidden),
        "encoders/emotion_feat": (1, semantic, hidden),
        "gpt/speaker_latents": (1, gpt.condition_latents, gpt.model_dim),
        "gpt/emotion_vector": (1, gpt.model_dim),
        "gpt/latents": (1, CODES, gpt.model_dim),
        **{f"gpt/layer_{i:02d}": (1, rows, gpt.model_dim) for i in recorded(gpt.layers)},
        "synthesis/length_reg": (1, target, config.s2mel.length_regulator.channels),
        **{f"synthesis/dit_step_{i:02d}": (1, mel.n_mels, frames + target) for i in recorded(steps)},
        "synthesis/mel_spec": (1, mel.n_mels, target),
        "output/audio": (target * mel.hop_length,),
    }
    arrays: dict[str, np.ndarray] = {
        name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()
    }
    for name in ("input/speaker_audio", "output/audio"):
        arrays[name] *= np.float32(0.1)
    arrays["input/tokens"] = rng.integers(2, gpt.number_text_tokens, TOKENS)
    arrays["encoders/semantic_codes"] = rng.integers(0, config.semantic_codec.codebook_size, (1, semantic))
    arrays["gpt/mel_codes"] = rng.integers(0, config.semantic_codec.codebook_size, (1, CODES))
    facts = {
        "mock": True,
        "note": "random arrays made without a model; validate refuses them",
        "text": text,
        "seed": seed,
        "speaker_sample_rate": mel.sample_rate,
    }
    return GoldenSet(facts, arrays)


def recorded(count: int) -> list[int]:
    """Indices of which arrays are kept: first, middle and last of `count`."""
    return sorted({0, count // 2, count - 1})
