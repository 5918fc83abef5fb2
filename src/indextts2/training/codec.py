"""Stage `codec`: the vector quantiser on the encoder's features.

Losses: reconstruction of the normalised features by a decoder that is not shipped, the two losses of VQ-VAE, and the
divergence of the phonemes that the encoder's own head reads from the reconstruction and from the features, which keeps
the codes phonetic (supervised semantic tokens as in CosyVoice, Du et al. 2024). Codes that die are moved onto random
latents. Axes: B batch, T frames (50 Hz), C channels, V labels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import SemanticCodecConfig, build
from indextts2.models.semantic.codec import SemanticCodec, SemanticCodecDecoder
from indextts2.text.phonemes import VOCABULARY_SIZE
from indextts2.training.data import Corpus, LengthBatches, pad
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import RunConfig, Stage, load_trained
from indextts2.training.semantic import (
    Recogniser,
    SemanticStageConfig,
    ctc_labels,
    edit_distance,
    frame_mask,
    greedy,
)


@dataclass(frozen=True)
class CodecStageConfig:
    """Batches and loss weights of the codec stage."""

    rows_per_batch: int = 1200
    reconstruction_weight: float = 1.0
    codebook_weight: float = 1.0
    commitment_weight: float = 0.25
    phoneme_weight: float = 1.0
    # A code that takes less than this part of its fair share over about `usage_memory` steps is restarted.
    dead_share: float = 0.05
    usage_memory: int = 100
    restart_every: int = 25
    # No restarts in the last part of the run, so that every code has settled.
    restart_until_step: int = 500


class CodecTrainer(nn.Module):
    """The codec with what only training needs: decoder, the encoder's phoneme head (fixed), usage of the codes."""

    usage: Tensor
    head_weight: Tensor
    head_bias: Tensor

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.codec = SemanticCodec(config)
        self.decoder = SemanticCodecDecoder(config)
        self.register_buffer("usage", torch.ones(config.codebook_size) / config.codebook_size)
        self.register_buffer("head_weight", torch.zeros(VOCABULARY_SIZE, config.hidden_size))
        self.register_buffer("head_bias", torch.zeros(VOCABULARY_SIZE))

    @torch.no_grad()
    def set_phoneme_head(self, head: nn.Linear, mean: Tensor, var: Tensor) -> None:
        """Take the head of the encoder's feature layer over, made to read normalised features."""
        self.head_weight.copy_(head.weight * var.sqrt())
        self.head_bias.copy_(head.bias + head.weight @ mean)

    def phonemes(self, features: Tensor) -> Tensor:
        """Normalised features (B, T, C), original or decoded, to CTC log-probabilities (B, T, V) in float32."""
        return F.log_softmax(F.linear(features, self.head_weight, self.head_bias).float(), dim=-1)

    def read_codes(self, codes: Tensor) -> list[int]:
        """Phoneme labels that the codes (M,) say: a cheap check of generated codes."""
        return greedy(self.phonemes(self.decoder(self.codec.embed(codes[None])))[0])

    @torch.no_grad()
    def count(self, indices: Tensor, memory: int) -> None:
        """Update the running share of every code with the indices (N,) of real frames."""
        share = torch.bincount(indices, minlength=len(self.usage)).to(self.usage) / max(len(indices), 1)
        self.usage.lerp_(share, 1 / memory)

    @torch.no_grad()
    def restart(self, latents: Tensor, dead_share: float) -> int:
        """Move dead codes onto random rows of `latents` (N, D); returns how many."""
        dead = torch.nonzero(self.usage * len(self.usage) < dead_share).flatten()
        rows = torch.randint(len(latents), (len(dead),), device=latents.device)
        self.codec.vector_quantizer.codebook.weight[dead] = latents[rows].to(self.usage)
        self.usage[dead] = 1 / len(self.usage)
        return len(dead)


class CodecStage(Stage):
    """Trains `CodecTrainer` on the normalised features in ``data/features.npy``."""

    name = "codec"

    def __init__(self, corpus: Corpus, codec: SemanticCodecConfig, config: CodecStageConfig, seed: int = 1) -> None:
        self.corpus, self.config = corpus, config
        self.model: CodecTrainer = CodecTrainer(codec)
        lengths = {number: corpus.clips[number].length("fbank") for number in corpus.train}
        self.batches = LengthBatches(lengths, config.rows_per_batch, seed)

    def collate(self, numbers: list[int]) -> dict[str, Tensor]:
        rows = [self.corpus.get("features", number, like="fbank").astype(np.float32) for number in numbers]
        return {
            "features": torch.from_numpy(pad(rows)).to(self.device),
            "lengths": torch.tensor([len(row) for row in rows], device=self.device),
        }

    def next_batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.collate(self.batches.next())

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        config, features = self.config, batch["features"]
        mask = frame_mask(batch["lengths"], features.shape[1])
        keep = mask.bool()
        result = self.model.codec.quantize_with_losses(features, mask)
        self._tend_codes(result.indices[keep], result.latents[keep].detach(), step)
        rebuilt = self.model.decoder(result.embedding, mask)
        reconstruction = F.mse_loss(rebuilt[keep].float(), features[keep])
        wanted, read = self.model.phonemes(features[keep]), self.model.phonemes(rebuilt[keep])
        phonemes = F.kl_div(read, wanted, log_target=True, reduction="batchmean")
        loss = (
            config.reconstruction_weight * reconstruction
            + config.codebook_weight * result.codebook_loss
            + config.commitment_weight * result.commitment_loss
            + config.phoneme_weight * phonemes
        )
        return {"loss": loss, "reconstruction": reconstruction, "commitment": result.commitment_loss,
                "phonemes": phonemes, "perplexity": perplexity(self.model.usage)}  # fmt: skip

    def _tend_codes(self, indices: Tensor, latents: Tensor, step: int) -> None:
        if not self.model.training:
            return
        if step == 0:
            self.model.usage.zero_()
        self.model.count(indices, self.config.usage_memory)
        if step % self.config.restart_every == 0 and step < self.config.restart_until_step:
            self.model.restart(latents, self.config.dead_share)

    def evaluate(self) -> dict[str, float]:
        """Held-out speakers: explained variance, phoneme error from the codes, perplexity, codes in use."""
        errors, total, square, residual = 0, 0, 0.0, 0.0
        counts = torch.zeros(len(self.model.usage))
        for number in self.corpus.held_out:
            features = self.collate([number])["features"]
            indices, embedding = self.model.codec.quantize(features)
            counts += torch.bincount(indices.flatten().cpu(), minlength=len(counts))
            residual += float((self.model.decoder(embedding) - features).square().sum())
            square += float(features.square().sum())
            labels = ctc_labels(self.corpus.text_ids(number))
            errors += edit_distance(self.model.read_codes(indices[0]), labels)
            total += len(labels)
        return {
            "explained_variance": 1 - residual / square,
            "phoneme_error": errors / max(total, 1),
            "perplexity": float(perplexity(counts / counts.sum())),
            "codes_in_use": int((counts > 0).sum()),
        }

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.load_state(state)


def perplexity(share: Tensor) -> Tensor:
    """Effective number of codes: exponential of the entropy of their shares."""
    return torch.exp(-(share * share.clamp(min=1e-12).log()).sum())


def load_recogniser(work: Path) -> Recogniser:
    """The trained encoder of stage `semantic` in evaluation mode."""
    recogniser = Recogniser(embedded_model_config(), SemanticStageConfig().dropout)
    recogniser.load_state_dict(load_trained(work / "semantic"))
    return recogniser.eval()


@torch.no_grad()
def write_features(corpus: Corpus, recogniser: Recogniser) -> None:
    """Run the encoder over the corpus: ``features.npy`` (normalised) and ``statistics.npz`` (mean and var, train)."""
    rows = [recogniser(torch.from_numpy(corpus.get("fbank", n).astype(np.float32))[None], None)[0][0].numpy()
            for n in range(len(corpus))]  # fmt: skip
    trained = np.concatenate([rows[n] for n in corpus.train]).astype(np.float64)
    mean, var = trained.mean(axis=0), trained.var(axis=0)
    np.savez(corpus.folder / "statistics.npz", mean=mean.astype(np.float32), var=var.astype(np.float32))
    normalised = (np.concatenate(rows) - mean) / np.sqrt(var)
    np.save(corpus.folder / "features.npy", normalised.astype(np.float16))


@torch.no_grad()
def normalised_features(corpus: Corpus, recogniser: Recogniser, fbank: np.ndarray) -> np.ndarray:
    """Features (T, C) of speech that is not in the corpus, from its fbank (T, 160), by the statistics of the corpus."""
    statistics = np.load(corpus.folder / "statistics.npz")
    features = recogniser(torch.from_numpy(fbank.astype(np.float32))[None], None)[0][0].numpy()
    return (features - statistics["mean"]) / np.sqrt(statistics["var"])


def load_codec(work: Path) -> SemanticCodec:
    """The trained codec of stage `codec` in evaluation mode."""
    trainer = CodecTrainer(embedded_model_config().semantic_codec)
    trainer.load_state_dict(load_trained(work / "codec"))
    return trainer.codec.eval()


@torch.no_grad()
def write_codes(corpus: Corpus, codec: SemanticCodec) -> None:
    """Quantise the corpus: ``codes.npy``, int16, one code per row of ``features.npy``."""
    codes = [codec.quantize(torch.from_numpy(corpus.get("features", n, like="fbank").astype(np.float32))[None])[0][0]
             for n in range(len(corpus))]  # fmt: skip
    np.save(corpus.folder / "codes.npy", torch.cat(codes).numpy().astype(np.int16))


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on the features of the trained encoder, which are written first when they are absent."""
    corpus = Corpus(work / "data")
    if not (corpus.folder / "features.npy").exists():
        write_features(corpus, load_recogniser(work))
    stage = CodecStage(corpus, embedded_model_config().semantic_codec, build(CodecStageConfig, changes or {}, "stage"))
    statistics = np.load(corpus.folder / "statistics.npz")
    mean, var = torch.from_numpy(statistics["mean"]), torch.from_numpy(statistics["var"])
    stage.model.set_phoneme_head(load_recogniser(work).middle_head, mean, var)
    run = RunConfig(output=str(work / "codec"), minutes=8, learning_rate=2e-3, warmup_steps=50)
    return stage, dataclasses.replace(run, precision="float32")
