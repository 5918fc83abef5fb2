"""Copies of the training clips for s2mel: speakers and moods that the corpus does not have.

| folder in ``data/`` | what is copied | prompts |
|---|---|---|
| ``shifted`` | every speaker as another one: pitch and formants moved together, by resampling | from itself |
| ``revoiced`` | half of the clips: pitch, its range and formants moved apart, far beyond the corpus | from itself |
| ``aroused`` | the other half, calmer or more excited: rate, pitch and its range, level | plain clips |

Each folder is a `Corpus` with the kinds ``mel``, ``codes`` and ``latents``, and ``styles.npy`` where it prompts itself.
A clip of ``revoiced`` keeps the codes and latents of its plain clip. One of ``aroused`` has the same codes, stretched,
and the latents that the GPT has for them under the emotion of speech that is stretched alike: by them s2mel hears what
mood to speak in.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import soxr
import torch
from tqdm import tqdm

from indextts2.audio.features import fbank_mean_normalised, log_mel
from indextts2.config import MelConfig
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.models.semantic.codec import SemanticCodec
from indextts2.models.speaker.campplus import CampPlus
from indextts2.training.augment import VoiceChange, shift_speaker, stretch
from indextts2.training.codec import load_codec, load_recogniser, normalised_features
from indextts2.training.data import (
    AROUSED,
    ENCODER_RATE_HZ,
    MEL_RATE_HZ,
    REVOICED,
    SHIFTED,
    Clip,
    Corpus,
    clip_features,
    to_int16,
)
from indextts2.training.gpt import load_stage, teacher_forced_latents
from indextts2.training.s2mel import load_speaker_encoder
from indextts2.training.semantic import Recogniser

# Logarithms of the smallest and the largest factor of a shifted speaker's pitch and formants, up or down.
SHIFTS = (0.06, 0.22)
# Logarithms of what a revoiced speaker's pitch, its range and the formants are changed by.
PITCHES, RANGES, FORMANTS = (-0.3, 0.9), (-0.2, 0.5), (-0.12, 0.25)


@dataclass
class Copies:
    """Copies while they are made: clips with the rows of each kind."""

    clips: list[Clip] = field(default_factory=list)
    rows: dict[str, list[np.ndarray]] = field(default_factory=dict)

    def add(
        self, clip: Clip, speaker: str, mel: np.ndarray, codes: np.ndarray, audio_16k: np.ndarray | None = None
    ) -> None:
        """Add a copy of `clip` with its mel (F, M), codes (K,) and, for a voice of its own, samples (N,) at 16 kHz."""
        rows = {"mel": mel.astype(np.float16), "fbank": codes.astype(np.int16)}
        if audio_16k is not None:
            rows["audio_16k"] = to_int16(audio_16k)
        last = self.clips[-1].spans if self.clips else dict.fromkeys(rows, (0, 0))
        spans = {kind: (last[kind][1], last[kind][1] + len(x)) for kind, x in rows.items()}
        for kind, x in rows.items():
            self.rows.setdefault("codes" if kind == "fbank" else kind, []).append(x)
        self.clips.append(replace(clip, speaker=speaker, seconds=len(mel) * 256 / MEL_RATE_HZ, spans=spans))

    def save(self, folder: Path, latents: Iterable[np.ndarray]) -> None:
        """Write all kinds and, last, the index."""
        folder.mkdir(parents=True, exist_ok=True)
        for kind, rows in self.rows.items():
            np.save(folder / f"{kind}.npy", np.concatenate(rows))
        np.save(folder / "latents.npy", np.concatenate(list(latents)).astype(np.float16))
        index = "".join(json.dumps(asdict(clip), ensure_ascii=False) + "\n" for clip in self.clips)
        (folder / "index.jsonl").write_text(index, encoding="utf-8")


@torch.inference_mode()
def write_shifted(
    corpus: Corpus, recogniser: Recogniser, codec: SemanticCodec, speaker: CampPlus, voice: UnifiedVoice, seed: int = 1
) -> None:
    """Write ``data/shifted``: each speaker that is trained on, once more as another one."""
    rng = np.random.default_rng(seed)
    factors = {name: math.exp(rng.choice((-1, 1)) * rng.uniform(*SHIFTS)) for name in corpus.speakers}
    copies, styles, features = Copies(), [], []
    for number in tqdm(corpus.train, desc="other speakers", unit="clip"):
        clip = corpus.clips[number]
        factor = factors[clip.speaker]
        audio, audio_16k = (
            shift_speaker(corpus.audio(number, rate), factor, rate) for rate in (MEL_RATE_HZ, ENCODER_RATE_HZ)
        )
        arrays = clip_features(audio, audio_16k, MelConfig())
        rows = normalised_features(corpus, recogniser, arrays["fbank"])
        codes = codec.quantize(torch.from_numpy(rows)[None])[0][0].numpy()
        styles.append(speaker(torch.from_numpy(fbank_mean_normalised(audio_16k))[None])[0].numpy())
        features.append(rows)
        copies.add(clip, f"{clip.speaker}*{factor:.3f}", arrays["mel"], codes)
    folder = corpus.folder / SHIFTED
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "styles.npy", np.stack(styles))
    by_speaker: dict[str, list[int]] = {}
    for number, clip in enumerate(copies.clips):
        by_speaker.setdefault(clip.speaker, []).append(number)

    def latents() -> Iterable[np.ndarray]:
        for number, clip in enumerate(tqdm(copies.clips, desc="their latents", unit="clip")):
            others = [n for n in by_speaker[clip.speaker] if n != number] or [number]
            condition = features[int(rng.choice(others))]
            yield teacher_forced_latents(voice, clip, copies.rows["codes"][number], condition, condition)

    copies.save(folder, latents())


@torch.inference_mode()
def write_revoiced(corpus: Corpus, speaker: CampPlus, seed: int = 1) -> None:
    """Write ``data/revoiced``: every second clip in a voice that its speaker gets for all of them."""
    rng = np.random.default_rng(seed)
    drawn = {name: np.exp([rng.uniform(*span) for span in (PITCHES, RANGES, FORMANTS)]) for name in corpus.speakers}
    copies, styles, latents = Copies(), [], []
    for number in tqdm(corpus.train[1::2], desc="other voices", unit="clip"):
        clip = corpus.clips[number]
        pitch, pitch_range, formants = drawn[clip.speaker].tolist()
        audio = VoiceChange(pitch, pitch_range, formants).apply(corpus.audio(number), MEL_RATE_HZ)
        audio_16k = soxr.resample(audio, MEL_RATE_HZ, ENCODER_RATE_HZ)
        styles.append(speaker(torch.from_numpy(fbank_mean_normalised(audio_16k))[None])[0].numpy())
        latents.append(corpus.get("latents", number, like="fbank"))
        codes = corpus.get("codes", number, like="fbank")
        copies.add(clip, f"{clip.speaker}*{pitch:.2f}*{formants:.2f}", log_mel(audio, MelConfig()).T, codes, audio_16k)
    copies.save(corpus.folder / REVOICED, latents)
    np.save(corpus.folder / REVOICED / "styles.npy", np.stack(styles))


@torch.inference_mode()
def write_aroused(corpus: Corpus, voice: UnifiedVoice, seed: int = 1) -> None:
    """Write ``data/aroused``: every second clip at an arousal of its own."""
    rng = np.random.default_rng(seed)
    copies, latents = Copies(), []
    room = voice.config.max_mel_tokens
    for number in tqdm(corpus.train[::2], desc="other moods", unit="clip"):
        clip, change = corpus.clips[number], VoiceChange.of_arousal(float(rng.uniform(-1, 1)))
        codes = stretch(corpus.get("codes", number, like="fbank").astype(np.int64), 1 / change.rate)
        if len(codes) > room:
            continue
        mel = log_mel(change.apply(corpus.audio(number), MEL_RATE_HZ), MelConfig()).T
        condition = corpus.get("features", corpus.other_clip(number, rng), like="fbank").astype(np.float32)
        emotion = stretch(condition, 1 / change.rate)
        latents.append(teacher_forced_latents(voice, clip, codes, condition, emotion))
        copies.add(clip, clip.speaker, mel, codes)
    copies.save(corpus.folder / AROUSED, latents)


def write_copies(work: Path) -> None:
    """Write all folders from the trained stages `semantic`, `codec`, `speaker` and `gpt`, and the latents."""
    corpus, voice, speaker = (
        Corpus(work / "data"),
        load_stage(work, "cpu").model.voice.eval(),
        load_speaker_encoder(work),
    )
    write_revoiced(corpus, speaker)
    write_aroused(corpus, voice)
    write_shifted(corpus, load_recogniser(work), load_codec(work), speaker, voice)
