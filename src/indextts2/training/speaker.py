"""Training stage of the speaker encoder: find the other recording of a speaker among those of many.

Two crops per speaker from different clips; every clip may be played faster or slower, and each factor makes another
speaker. The corpus' copies in other voices (`indextts2.training.copies`) take part once they are written: speakers
whose pitch does not go with their formants. Contrasts within the batch learn from the first step, where a classifier
with a thousand directions and a margin does not move in the few hundred steps that a CPU has time for.
S speakers, T filter-bank frames (100 Hz), E embedding.
Sources: Wang et al. 2023 (CAM++), Chung et al. 2020 (angular prototypical loss).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.audio.features import fbank_mean_normalised
from indextts2.config import CampPlusConfig, build
from indextts2.models.speaker.campplus import CampPlus
from indextts2.training.augment import add_noise, change_colour, change_level, shift_speaker
from indextts2.training.data import ENCODER_RATE_HZ, REVOICED, Corpus, copies
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import RunConfig, Stage


@dataclass(frozen=True)
class SpeakerStageConfig:
    """Batches and augmentation. One factor of 1 keeps the speakers of the corpus."""

    crop_samples: int = 28_800
    speakers_per_batch: int = 24
    factors: tuple[float, ...] = (0.84, 0.89, 0.945, 1.0, 1.06, 1.12, 1.19)
    # Random change of the factor within a speaker: nobody's pitch is that constant.
    factor_jitter: float = 0.01
    start_scale: float = 10.0


class SpeakerContrast(nn.Module):
    """The encoder with the learnt scale of its cosines."""

    def __init__(self, config: CampPlusConfig, start_scale: float) -> None:
        super().__init__()
        self.encoder = CampPlus(config)
        self.scale = nn.Parameter(torch.tensor(start_scale))

    def forward(self, fbank: Tensor) -> Tensor:
        """First and second crops of all speakers (2, S, T, 80) -> scaled cosines (S, S), first against second."""
        first, second = F.normalize(self.encoder(fbank.flatten(0, 1)).float(), dim=-1).chunk(2)
        return self.scale.clamp(min=1.0) * first @ second.T


def contrast_loss(cosines: Tensor) -> Tensor:
    """Cross-entropy of finding the own partner (the diagonal), in both directions."""
    own = torch.arange(len(cosines), device=cosines.device)
    return (F.cross_entropy(cosines, own) + F.cross_entropy(cosines.T, own)) / 2


def equal_error_rate(same: np.ndarray, different: np.ndarray) -> float:
    """Error at the threshold where as many same pairs are refused as different pairs are accepted."""
    thresholds = np.sort(np.concatenate([same, different]))
    refused = np.searchsorted(np.sort(same), thresholds) / len(same)
    accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    best = int(np.argmin(np.abs(refused - accepted)))
    return float((refused[best] + accepted[best]) / 2)


class Recording(NamedTuple):
    """A clip of the corpus or of its copies."""

    corpus: Corpus
    clip: int


class SpeakerStage(Stage):
    """CAMPPlus on augmented crops of training clips."""

    name = "speaker"

    def __init__(self, corpus: Corpus, network: CampPlusConfig, config: SpeakerStageConfig) -> None:
        self.corpus, self.config = corpus, config
        self.clips: dict[str, list[Recording]] = {}
        for source in (corpus, *(copy for name, copy in copies(corpus).items() if name == REVOICED)):
            for number in source.train:
                self.clips.setdefault(source.clips[number].speaker, []).append(Recording(source, number))
        # A contrast needs two recordings.
        self.clips = {name: recordings for name, recordings in self.clips.items() if len(recordings) > 1}
        self.device = torch.device("cpu")
        self.model: SpeakerContrast = SpeakerContrast(network, config.start_scale)

    def _crop(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`crop_samples` from a random place; short clips are repeated."""
        wanted = self.config.crop_samples
        if len(samples) < wanted:
            samples = np.tile(samples, -(-wanted // len(samples)))
        start = int(rng.integers(0, len(samples) - wanted + 1))
        return samples[start : start + wanted]

    def _example(self, recording: Recording, factor: float, rng: np.random.Generator) -> np.ndarray:
        """Filter bank (T, 80) of an augmented crop."""
        factor *= 1 + rng.uniform(-self.config.factor_jitter, self.config.factor_jitter)
        # Cut before resampling: the work is the same for short and long clips.
        samples = self._crop(recording.corpus.audio(recording.clip, ENCODER_RATE_HZ), rng)
        samples = self._crop(shift_speaker(samples, factor, ENCODER_RATE_HZ), rng)
        samples = change_level(change_colour(samples, rng), rng)
        return fbank_mean_normalised(add_noise(samples, rng))

    def next_batch(self, rng: np.random.Generator) -> Tensor:
        """Filter banks (2, S, T, 80): two clips of each speaker."""
        names = sorted(self.clips)
        count = min(self.config.speakers_per_batch, len(names))
        first, second = [], []
        for index in rng.choice(len(names), count, replace=False):
            factor = float(rng.choice(self.config.factors))
            recordings = self.clips[names[index]]
            one, other = rng.choice(len(recordings), 2, replace=False)
            first.append(self._example(recordings[one], factor, rng))
            second.append(self._example(recordings[other], factor, rng))
        return torch.from_numpy(np.stack([np.stack(first), np.stack(second)]))

    def losses(self, batch: Tensor, step: int) -> dict[str, Tensor]:
        cosines = self.model(batch.to(self.device))
        found = cosines.argmax(1) == torch.arange(len(cosines), device=cosines.device)
        return {"loss": contrast_loss(cosines), "accuracy": found.float().mean()}

    def embed(self, clip: int) -> np.ndarray:
        """Style vector (E,) of a whole clip."""
        fbank = fbank_mean_normalised(self.corpus.audio(clip, ENCODER_RATE_HZ))
        return self.model.encoder(torch.from_numpy(fbank)[None].to(self.device))[0].float().cpu().numpy()

    def evaluate(self) -> dict[str, float]:
        """Verification on pairs of clips of the held-out speakers, at most 20 clips each; they must be two or more."""
        held_out = set(self.corpus.held_out)
        clips = [i for s in self.corpus.speakers for i in self.corpus.by_speaker[s][:20] if i in held_out]
        vectors = np.stack([self.embed(i) for i in clips])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        scores = vectors @ vectors.T
        names = np.array([self.corpus.clips[i].speaker for i in clips])
        upper = np.triu(np.ones_like(scores, dtype=bool), 1)
        equal = names[:, None] == names[None]
        same, different = scores[equal & upper], scores[~equal & upper]
        return {
            "equal_error_rate": equal_error_rate(same, different),
            "cosine_same": float(same.mean()), "cosine_different": float(different.mean()),
        }  # fmt: skip


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on the prepared corpus in ``work/data`` with its default run."""
    stage = SpeakerStage(
        Corpus(work / "data"), embedded_model_config().campplus, build(SpeakerStageConfig, changes or {}, "stage")
    )
    run = RunConfig(output=str(work / "speaker"), minutes=10, learning_rate=2e-3, log_every=10)
    return stage, run
