"""IndexTTS2: text and a voice in, speech out. The whole path in one file; its steps are in `stages.py`.

    text ──► segments of ids ─┐
    reference audio ─► Voice ─┼─► codes, latents ─► condition ─► mel ─► waveform      (once per segment)
    emotion ─► vector ────────┘

`speaking.speak` is the one generator of speech; `infer` collects it and `stream` hands it on. The networks are never
changed after loading and every request has its own random generator and clock, so threads may share one IndexTTS2.
"""

from __future__ import annotations

import dataclasses
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from indextts2.audio.loader import load_reference
from indextts2.checkpoints.adapters import Adapter
from indextts2.checkpoints.layout import ModelDirectory, resolve_model
from indextts2.checkpoints.loading import Models, load_models
from indextts2.config import InferenceConfig, ModelConfig, ResolvedConfig, load_yaml, parse_model_config
from indextts2.errors import CheckpointError, ConfigError, UsageError
from indextts2.inference import stages
from indextts2.inference.allocator import keep_freed_memory
from indextts2.inference.emotion import Emotion, EmotionAudio, EmotionVector, EmotionWords, as_emotion
from indextts2.inference.layout import arrange_weights
from indextts2.inference.named_voices import resolve_speaker
from indextts2.inference.progress import CancelCheck, ProgressCallback, Run
from indextts2.inference.recording import record
from indextts2.inference.speaking import SegmentSpeech, speak, speak_alone
from indextts2.inference.streaming import Mode, SpeechStream
from indextts2.inference.voice import ContentCache, Voice, content_key
from indextts2.models.emotion.matrix import EmotionMatrix, merge_emotion_vectors
from indextts2.models.emotion.vector import scale_emotion_vector
from indextts2.models.gpt.lora import merge_adapters
from indextts2.types import Segment, SpeechResult, Waveform

if TYPE_CHECKING:
    from indextts2.inference.low_latency import ChunkPlan
    from indextts2.models.emotion.words import EmotionFromText
    from indextts2.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)

Speaker = Voice | Waveform | str | Path | bytes
EmotionInput = Emotion | Waveform | Path | str | Sequence[float] | None
SamplesCallback = Callable[[np.ndarray], None]
VOICE_SUFFIX = ".safetensors"


@dataclasses.dataclass
class _Loaded:
    """What `load_weights` brings. `emotion_from_text` is loaded when it is first asked for."""

    models: Models
    tokenizer: TextTokenizer
    emotion_matrix: EmotionMatrix
    emotion_from_text: EmotionFromText | None = None


class IndexTTS2:
    """Zero-shot text to speech.

    Make one with `IndexTTS2.from_pretrained(directory_or_name)`, or with `IndexTTS2(config)` and `load_weights`.
    Use `with tts:` or `close()` to let go of the weights.
    """

    def __init__(self, config: ModelConfig, voice_cache_size: int = 8) -> None:
        self.config = config
        self.directory: ModelDirectory | None = None
        self._loaded: _Loaded | None = None
        self._cache_size = voice_cache_size
        self._voices: ContentCache[Voice] = ContentCache(voice_cache_size)
        self._emotions: ContentCache[torch.Tensor] = ContentCache(voice_cache_size)

    # --- construction -------------------------------------------------------------------------------------------------

    @classmethod
    def with_config(cls, path: str | Path) -> IndexTTS2:
        """An IndexTTS2 without weights, its sizes read from a `config.yaml`."""
        return cls(parse_model_config(load_yaml(Path(path))))

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        config: str | Path | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        warm_up: bool = True,
    ) -> IndexTTS2:
        """Load a model directory (official layout or converted), or an installed model by name.

        Args:
            model: directory or name; None is the embedded voice.
            config: another `config.yaml` than the directory's own.
            device: None chooses CUDA, XPU, MPS, CPU in this order.
            dtype: of the GPT; all other networks stay in float32 as in the official implementation.
            warm_up: see `warm_up`; without it, the first requests on a GPU take longer.

        Raises:
            CheckpointError, ConfigError: something is missing, unknown or misshapen.
        """
        directory = ModelDirectory.open(resolve_model(model), config)
        return cls(directory.config).load_weights(directory, device=device, dtype=dtype, warm_up=warm_up)

    def load_weights(
        self,
        directory: str | Path | ModelDirectory,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        warm_up: bool = True,
    ) -> IndexTTS2:
        """Read the weights of `directory`, whose sizes must be those of this object's configuration.

        Raises:
            CheckpointError, ConfigError: something is missing, unknown, misshapen, or of other sizes.
        """
        if not isinstance(directory, ModelDirectory):
            directory = ModelDirectory.open(resolve_model(directory))
        _check_same_sizes(self.config, directory)
        keep_freed_memory()
        models = load_models(directory, device=device, dtype=dtype)
        arrange_weights(models)
        matrices = models.emotion_matrices
        emotion_matrix = EmotionMatrix(matrices.speaker, matrices.emotion, models.config.emo_num)
        self._loaded = _Loaded(models, _make_tokenizer(directory), emotion_matrix)
        self.clear_caches()
        self.directory, self.config = directory, models.config
        if warm_up and models.device.type == "cuda":
            self.warm_up()
        return self

    def warm_up(
        self, config: InferenceConfig | None = None, speaker: Speaker | None = None, requests: int = 1
    ) -> IndexTTS2:
        """On a GPU, record what usual requests with these options will need; elsewhere there is nothing to do.

        Args:
            config: None takes the defaults.
            speaker: the flow is recorded for this voice; None leaves it to the first request of each voice.
            requests: how many will be decoded together.
        """
        options = (config or InferenceConfig()).resolved(self.config)
        prompt = None if speaker is None else self.voice(speaker).prompt_mel.shape[-1]
        record(self.models, options, requests, prompt)
        return self

    def load_adapter(self, path: str | Path) -> IndexTTS2:
        """Merge a fine-tuned adapter (`indextts2 train finetune`) into the GPT. Voices stay valid.

        Raises:
            CheckpointError: the file is no adapter, or was trained for another model.
        """
        adapter = Adapter.load(path)
        adapter.check_model(self.models.fingerprint)
        merge_adapters(self.models.gpt.gpt, adapter.tensors, adapter.scale)
        return self

    def close(self) -> None:
        """Let go of networks and caches."""
        self._loaded = None
        self.clear_caches()

    def clear_caches(self) -> None:
        """Forget the voices and emotions computed so far."""
        self._voices, self._emotions = ContentCache(self._cache_size), ContentCache(self._cache_size)

    def __enter__(self) -> IndexTTS2:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def loaded(self) -> _Loaded:
        """Networks, tokenizer and emotion matrix; CheckpointError before `load_weights`."""
        if self._loaded is None:
            raise CheckpointError("no weights are loaded; call load_weights(directory) first")
        return self._loaded

    @property
    def models(self) -> Models:
        """The loaded networks; CheckpointError before `load_weights`."""
        return self.loaded.models

    @property
    def tokenizer(self) -> TextTokenizer:
        """Text to ids, as the checkpoint wants it; CheckpointError before `load_weights`."""
        return self.loaded.tokenizer

    @property
    def sample_rate(self) -> int:
        """Of everything that is synthesised, Hz."""
        return self.config.s2mel.mel.sample_rate

    # --- reference audio ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def voice(self, speaker: Speaker, name: str = "", run: Run | None = None) -> Voice:
        """The Voice of reference audio, a voice file, a named voice or a Voice; computed once per content.

        Raises:
            AudioError: the audio is unreadable, too short, silent or not finite.
            CheckpointError: a voice file of another model.
        """
        models = self.models
        if isinstance(speaker, Voice):
            return speaker.check_model(models.fingerprint).to(models.device)
        if isinstance(speaker, (str, Path)) and Path(speaker).suffix == VOICE_SUFFIX:
            return Voice.load(speaker).check_model(models.fingerprint).to(models.device)
        reference = load_reference(resolve_speaker(speaker) if isinstance(speaker, str) else speaker)
        make_run = run or Run()
        voice = self._voices.get(content_key(reference), lambda: stages.encode_voice(models, reference, make_run))
        return dataclasses.replace(voice, name=name) if name else voice

    @torch.inference_mode()
    def emotion_vector(
        self, voice: Voice, emotion: EmotionInput, text: str, run: Run | None = None, seed: int = 0
    ) -> torch.Tensor:
        """The vector (1, D) that is added to the speaker latents, resolved as 04 section 2 says."""
        wanted = as_emotion(emotion)
        run = run or Run()
        if wanted is None:
            return merge_emotion_vectors(voice.own_emotion, voice.audio_emotion, 1.0)
        if isinstance(wanted, EmotionAudio):
            reference = load_reference(wanted.audio)
            with run.stage("emotion_encoding"):
                other = self._emotions.get(
                    content_key(reference), lambda: stages.encode_emotion(self.models, reference)
                )
            return merge_emotion_vectors(voice.own_emotion, other, wanted.alpha)
        if isinstance(wanted, EmotionWords):
            with run.stage("emotion_words"):
                weights = self.words_to_vector(wanted.text if wanted.text is not None else text)
            wanted = EmotionVector(tuple(weights), wanted.alpha, wanted.random_rows)
        merged = merge_emotion_vectors(voice.own_emotion, voice.audio_emotion, 1.0)
        return self.blend_emotion(wanted, voice.style, merged, seed)

    def blend_emotion(
        self, emotion: EmotionVector, style: torch.Tensor, merged: torch.Tensor, seed: int
    ) -> torch.Tensor:
        """Mix rows of the emotion matrix with `merged` (1, D), the vector that audio gave (04 section 4)."""
        weights = scale_emotion_vector(emotion.weights, emotion.alpha)
        return self.loaded.emotion_matrix.blend(
            weights, style, merged, random.Random(seed) if emotion.random_rows else None
        )

    def words_to_vector(self, text: str) -> Sequence[float]:
        """The eight weights that the Qwen model reads from `text`.

        Raises:
            CheckpointError: the model directory has no such model. MissingExtraError: transformers is not installed.
        """
        from indextts2.models.emotion.words import EmotionFromText

        loaded = self.loaded
        if loaded.emotion_from_text is None:
            folder = loaded.models.emotion_text_directory
            if folder is None:
                raise CheckpointError(
                    "this model directory has no model that reads emotion from words (qwen0.6bemo4-merge); fetch it "
                    "with `indextts2 download --emotion-text`, or give the emotion by names or weights"
                )
            loaded.emotion_from_text = EmotionFromText.load(folder, device=str(loaded.models.device))
        return loaded.emotion_from_text.vector(text)

    # --- speech -------------------------------------------------------------------------------------------------------

    def infer(
        self,
        text: str,
        speaker: Speaker,
        emotion: EmotionInput = None,
        config: InferenceConfig | None = None,
        *,
        on_progress: ProgressCallback | None = None,
        on_samples: SamplesCallback | None = None,
        cancel: CancelCheck | None = None,
    ) -> SpeechResult:
        """Speak `text` in the voice of `speaker` with `emotion`.

        Args:
            text: what is to be said; any length, cut into segments.
            speaker: reference audio (path, bytes, Waveform), a voice file (`.safetensors`) or a Voice.
            emotion: None (as in the reference), a Path, Waveform or EmotionAudio, eight numbers, a string such as
                `"happy:0.7,sad:0.2"`, or EmotionWords.
            config: options; None takes the defaults.
            on_progress: called with a Progress, often.
            on_samples: called with samples (N,) as soon as they are final: segments, and the silence between them.
            cancel: polled at every decode and flow step; True ends the call with Cancelled.

        Raises:
            TextError, AudioError, UsageError, GenerationError, Cancelled: each says what to do about it.
        """
        start = time.perf_counter()
        options = (config or InferenceConfig()).resolved(self.config)
        run = Run(on_progress, cancel)
        silence = silence_samples(options, self.sample_rate)
        parts: list[np.ndarray] = []
        segments: list[Segment] = []
        mels: list[np.ndarray] = []
        position = 0
        for speech in self.segments(text, speaker, emotion, options, run):
            new = [silence, speech.samples] if parts and silence.size else [speech.samples]
            parts += new
            begin = position + sum(part.size for part in new[:-1])
            position = begin + speech.samples.size
            if on_samples is not None:
                for part in new:
                    on_samples(part)
            mels.append(speech.mel)
            segments.append(
                Segment(
                    self.tokenizer.to_text(speech.pieces),
                    speech.pieces,
                    speech.codes,
                    begin / self.sample_rate,
                    position / self.sample_rate,
                    speech.hit_limit,
                )
            )
        run.timings["total"] = time.perf_counter() - start
        return SpeechResult(
            samples=np.concatenate(parts),
            sample_rate=self.sample_rate,
            text=text,
            mel_codes=np.concatenate([s.mel_codes for s in segments]),
            mel=np.concatenate(mels, axis=1),
            segments=tuple(segments),
            seed=options.seed,
            timings=run.timings,
            metadata=self.metadata(options),
        )

    def infer_with_emotion(
        self,
        text: str,
        speaker: Speaker,
        emotion_audio: str | Path | bytes | Waveform,
        alpha: float = 1.0,
        config: InferenceConfig | None = None,
    ) -> SpeechResult:
        """`infer` with the emotion of another recording; `alpha` 0 keeps the speaker's own."""
        return self.infer(text, speaker, EmotionAudio(emotion_audio, alpha), config)

    def stream(
        self,
        text: str | Iterable[str],
        speaker: Speaker,
        emotion: EmotionInput = None,
        config: InferenceConfig | None = None,
        *,
        mode: Mode = "exact",
        plan: ChunkPlan | None = None,
        cancel: CancelCheck | None = None,
        on_progress: ProgressCallback | None = None,
    ) -> SpeechStream:
        """Speak while the text is worked on: an iterator of AudioChunk, each computed when it is asked for.

        Args:
            text: a whole text, or an iterable of pieces of a text that is still arriving; such a text is spoken
                sentence by sentence.
            speaker, emotion, config, cancel, on_progress: as in `infer`.
            mode: "exact": a chunk per segment; the chunks joined are what `infer` gives. "low-latency": chunks of
                less than a sentence, whose sound is close to that of `infer` but not the same.
            plan: sizes of the chunks of the low-latency mode.

        Raises:
            UsageError: an unknown mode, or options that do not go with it.
            TextError, AudioError, GenerationError, CheckpointError, Cancelled: from the iteration.
        """
        return SpeechStream(
            self, text, speaker, emotion, config, mode=mode, plan=plan, cancel=cancel, on_progress=on_progress
        )

    def segments(
        self,
        text: str,
        speaker: Speaker,
        emotion: EmotionInput = None,
        config: InferenceConfig | None = None,
        run: Run | None = None,
    ) -> Iterator[SegmentSpeech]:
        """Speak segment by segment.

        With `target_seconds` all segments are decoded before the first one is heard, since the length of each
        depends on the length of all.
        """
        options = (config or InferenceConfig()).resolved(self.config)
        return speak_alone(self, speak(self, text, speaker, emotion, options, run or Run()))

    def text_segments(self, text: str, config: InferenceConfig | None = None) -> list[stages.TextSegment]:
        """The segments that `text` is spoken in.

        Raises:
            TextError: nothing in the text can be spoken.
        """
        most = self.config.gpt.max_text_tokens
        return stages.text_to_segments(self.tokenizer, text, config or InferenceConfig(), most)

    def target_factor(self, decoded: list[stages.Codes], config: ResolvedConfig) -> float:
        """The duration factor that makes all segments and silences last `target_seconds`."""
        mel = self.config.s2mel.mel
        assert config.target_seconds is not None
        silent = (len(decoded) - 1) * silence_samples(config, self.sample_rate).size
        wanted = (config.target_seconds * self.sample_rate - silent) / mel.hop_length
        natural = sum(stages.target_frames(self.models, codes.codes.shape[1]) for codes in decoded)
        factor = wanted / natural
        if not 0.5 <= factor <= 2.0:
            raise UsageError(
                f"{config.target_seconds} s asked for, but the speech lasts "
                f"{natural * mel.hop_length / self.sample_rate:.1f} s by nature; it can be made half to twice as long"
            )
        return factor

    def metadata(self, config: ResolvedConfig) -> dict[str, str]:
        """Provenance, to be written into every file."""
        from indextts2 import __version__

        return {
            "title": "Synthetic speech",
            "comment": f"synthetic speech; seed {config.seed}; model {self.models.fingerprint[:16]}",
            "software": f"indextts2 {__version__}",
        }


def silence_samples(config: InferenceConfig, sample_rate: int) -> np.ndarray:
    """The zeros between two segments."""
    return np.zeros(int(sample_rate * config.interval_silence_ms / 1000.0), dtype=np.float32)


def _make_tokenizer(directory: ModelDirectory) -> TextTokenizer:
    """The tokenizer that belongs to the checkpoint."""
    from indextts2.text.glossary import Glossary
    from indextts2.text.normalizer import TextNormalizer

    normalizer = TextNormalizer(Glossary.from_model_dir(directory.path))
    if directory.tokenizer_file is None:
        from indextts2.text.phonemes import PhonemeTokenizer

        return PhonemeTokenizer(normalizer)
    from indextts2.text.tokenizer import Tokenizer

    return Tokenizer(directory.tokenizer_file, normalizer)


def _check_same_sizes(wanted: ModelConfig, directory: ModelDirectory) -> None:
    """Weights of other sizes than the object was made for are an error; sections it does not know are taken over."""
    for field in dataclasses.fields(ModelConfig):
        ours, theirs = getattr(wanted, field.name), getattr(directory.config, field.name)
        if field.name != "files" and ours is not None and ours != theirs:
            raise ConfigError(
                f"this object was made for {field.name} = {ours}, but {directory.path} has {theirs}; "
                "make it with `IndexTTS2.from_pretrained` or from the directory's own config.yaml"
            )
