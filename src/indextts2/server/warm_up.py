"""The first synthesis is slow: grammars are read, weights are paged in. So one is done beforehand."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from time import monotonic
from typing import TYPE_CHECKING

from indextts2.errors import GenerationError, TextError

if TYPE_CHECKING:
    from indextts2.inference.pipeline import IndexTTS2

log = logging.getLogger(__name__)

# One text for each language whose grammars are read when they are first needed.
TEXTS = ("你好，1。", "Hello, 1.")
NOISE_SECONDS = 1.5
CODES = 8


def warm_up(tts: IndexTTS2, preset: str = "exact", requests: int = 1) -> None:
    """Speak a few codes in the voice of some noise, and forget it. A GPU also records what `requests` together need."""
    import numpy as np

    from indextts2.config import GenerationConfig, InferenceConfig
    from indextts2.types import Waveform

    start = monotonic()
    tts.tokenizer.normalizer.read_in_processes()
    for text in TEXTS:
        with suppress(TextError):  # not every model speaks every language
            tts.text_segments(text)
    tts.warm_up(InferenceConfig(preset=preset), requests=requests)
    noise = np.random.default_rng(0).normal(0, 0.1, int(NOISE_SECONDS * tts.sample_rate)).astype(np.float32)
    generation = replace(tts.config.generation or GenerationConfig(), max_mel_tokens=CODES, min_new_tokens=0)
    config = InferenceConfig(generation=generation, steps=1, seed=0)
    try:
        tts.infer(TEXTS[-1], Waveform(noise, tts.sample_rate), config=config)
    except GenerationError as error:
        log.debug("noise is no voice: %s", error)
    tts.clear_caches()
    log.info("warmed up in %.1f s", monotonic() - start)
