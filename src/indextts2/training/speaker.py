"""Training stage of the speaker encoder: classification of speakers with an additive angular margin.

Every clip may be played faster or slower; each factor makes another speaker with a class of its own.
B batch, T filter-bank frames (100 Hz), E embedding, K classes.
Sources: Wang et al. 2023 (CAM++), Deng et al. 2019 (ArcFace).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.audio.features import fbank_mean_normalised
from indextts2.config import CampPlusConfig
from indextts2.models.speaker.campplus import CampPlus
from indextts2.training.augment import add_noise, change_colour, change_level, shift_speaker
from indextts2.training.data import ENCODER_RATE_HZ, Corpus
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import RunConfig, Stage


@dataclass(frozen=True)
class SpeakerStageConfig:
    """Batches, classes and margin. One factor of 1 keeps the speakers of the corpus."""

    crop_samples: int = 28_800
    batch_size: int = 48
    factors: tuple[float, ...] = (0.89, 1.0, 1.12)
    # Random change of the factor within a class: a speaker's pitch is not that constant.
    factor_jitter: float = 0.01
    margin: float = 0.2
    scale: float = 30.0


class SpeakerClassifier(nn.Module):
    """The encoder with one direction per training speaker."""

    def __init__(self, config: CampPlusConfig, classes: int) -> None:
        super().__init__()
        self.encoder = CampPlus(config)
        self.directions = nn.Parameter(torch.randn(classes, config.embedding_size) * config.embedding_size**-0.5)

    def forward(self, fbank: Tensor) -> Tensor:
        """(B, T, 80) -> cosines (B, K)."""
        embedding = self.encoder(fbank).float()
        return F.normalize(embedding, dim=-1) @ F.normalize(self.directions, dim=-1).T


def angular_margin_logits(cosines: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Add `margin` radians to the angle of the right class and scale: logits (B, K)."""
    right = cosines.gather(1, labels[:, None]).clamp(-1 + 1e-6, 1 - 1e-6)
    shifted = right * math.cos(margin) - (1 - right.square()).sqrt() * math.sin(margin)
    return scale * cosines.scatter(1, labels[:, None], shifted)


def equal_error_rate(same: np.ndarray, different: np.ndarray) -> float:
    """Error at the threshold where as many same pairs are refused as different pairs are accepted."""
    thresholds = np.sort(np.concatenate([same, different]))
    refused = np.searchsorted(np.sort(same), thresholds) / len(same)
    accepted = 1 - np.searchsorted(np.sort(different), thresholds) / len(different)
    best = int(np.argmin(np.abs(refused - accepted)))
    return float((refused[best] + accepted[best]) / 2)


class SpeakerStage(Stage):
    """CAMPPlus on augmented crops of training clips."""

    name = "speaker"

    def __init__(self, corpus: Corpus, network: CampPlusConfig, config: SpeakerStageConfig) -> None:
        self.corpus, self.config = corpus, config
        self.speakers = sorted({corpus.clips[i].speaker for i in corpus.train})
        self.device = torch.device("cpu")
        self.model: SpeakerClassifier = SpeakerClassifier(network, len(self.speakers) * len(config.factors))

    def _crop(self, samples: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """`crop_samples` from a random place; short clips are repeated."""
        wanted = self.config.crop_samples
        if len(samples) < wanted:
            samples = np.tile(samples, -(-wanted // len(samples)))
        start = int(rng.integers(0, len(samples) - wanted + 1))
        return samples[start : start + wanted]

    def _example(self, speaker: int, factor: int, rng: np.random.Generator) -> np.ndarray:
        """Filter bank (T, 80) of an augmented crop of that speaker."""
        clip = int(rng.choice(self.corpus.by_speaker[self.speakers[speaker]]))
        jitter = 1 + rng.uniform(-self.config.factor_jitter, self.config.factor_jitter)
        # Cut before resampling: the work is the same for short and long clips.
        samples = self._crop(self.corpus.audio(clip, ENCODER_RATE_HZ), rng)
        samples = shift_speaker(samples, self.config.factors[factor] * jitter, ENCODER_RATE_HZ)
        samples = change_level(change_colour(self._crop(samples, rng), rng), rng)
        return fbank_mean_normalised(add_noise(samples, rng))

    def next_batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Filter banks (B, T, 80) and classes (B,)."""
        speakers = rng.integers(0, len(self.speakers), self.config.batch_size)
        factors = rng.integers(0, len(self.config.factors), self.config.batch_size)
        rows = [self._example(int(s), int(f), rng) for s, f in zip(speakers, factors, strict=True)]
        labels = factors * len(self.speakers) + speakers
        return torch.from_numpy(np.stack(rows)), torch.from_numpy(labels)

    def losses(self, batch: tuple[Tensor, Tensor], step: int) -> dict[str, Tensor]:
        fbank, labels = (x.to(self.device) for x in batch)
        cosines = self.model(fbank)
        # The margin grows in over the first steps; at once it would keep a fresh network from learning.
        margin = self.config.margin * min(1.0, step / 400)
        loss = F.cross_entropy(angular_margin_logits(cosines, labels, margin, self.config.scale), labels)
        accuracy = (cosines.argmax(1) == labels).float().mean()
        return {"loss": loss, "accuracy": accuracy}

    def embed(self, clip: int) -> np.ndarray:
        """Style vector (E,) of a whole clip."""
        fbank = fbank_mean_normalised(self.corpus.audio(clip, ENCODER_RATE_HZ))
        return self.model.encoder(torch.from_numpy(fbank)[None].to(self.device))[0].float().cpu().numpy()

    def evaluate(self) -> dict[str, float]:
        """Verification on pairs of clips of the held-out speakers, at most 20 clips each."""
        clips = [i for s in self.corpus.speakers for i in self.corpus.by_speaker[s][:20] if i in self.corpus.held_out]
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


def make(work: Path) -> tuple[Stage, RunConfig]:
    """The stage on the prepared corpus in ``work/data`` with its default run."""
    stage = SpeakerStage(Corpus(work / "data"), embedded_model_config().campplus, SpeakerStageConfig())
    run = RunConfig(output=str(work / "speaker"), minutes=10, learning_rate=2e-3, log_every=10)
    return stage, run
