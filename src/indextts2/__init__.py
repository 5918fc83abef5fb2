"""IndexTTS2: zero-shot voice cloning with emotion.

    from indextts2 import IndexTTS2

    tts = IndexTTS2.from_pretrained("checkpoints")
    tts.infer("Hello, world!", "reference.wav").save("hello.wav")

Importing the package does no work; torch is imported when a public name is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from indextts2.config import GenerationConfig, InferenceConfig, ModelConfig
    from indextts2.errors import IndexTTS2Error
    from indextts2.inference.emotion import EmotionAudio, EmotionVector, EmotionWords
    from indextts2.inference.engine import SpeechEngine, SpeechRequest
    from indextts2.inference.low_latency import ChunkPlan
    from indextts2.inference.pipeline import IndexTTS2
    from indextts2.inference.streaming import StreamingSynthesizer
    from indextts2.inference.voice import Voice
    from indextts2.types import AudioChunk, Segment, SpeechResult, Waveform

__version__ = "0.1.0"

_HOMES = {
    "IndexTTS2": "inference.pipeline", "Voice": "inference.voice",
    "EmotionAudio": "inference.emotion", "EmotionVector": "inference.emotion", "EmotionWords": "inference.emotion",
    "SpeechEngine": "inference.engine", "SpeechRequest": "inference.engine",
    "StreamingSynthesizer": "inference.streaming", "ChunkPlan": "inference.low_latency",
    "ModelConfig": "config", "InferenceConfig": "config", "GenerationConfig": "config",
    "IndexTTS2Error": "errors",
    "AudioChunk": "types", "Segment": "types", "SpeechResult": "types", "Waveform": "types",
}  # fmt: skip

__all__ = [
    "AudioChunk",
    "ChunkPlan",
    "EmotionAudio",
    "EmotionVector",
    "EmotionWords",
    "GenerationConfig",
    "IndexTTS2",
    "IndexTTS2Error",
    "InferenceConfig",
    "ModelConfig",
    "Segment",
    "SpeechEngine",
    "SpeechRequest",
    "SpeechResult",
    "StreamingSynthesizer",
    "Voice",
    "Waveform",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'indextts2' has no attribute {name!r}")
    return getattr(import_module(f"indextts2.{_HOMES[name]}"), name)
