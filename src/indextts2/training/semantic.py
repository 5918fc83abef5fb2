"""Stage `semantic`: the small w2v-BERT-shaped encoder, trained as a phoneme recogniser by CTC (Graves et al. 2006).

The features of IndexTTS2 come from a middle layer, so that layer gets a CTC head of its own (intermediate CTC, Lee and
Watanabe 2021). The last layer and both heads are not shipped. Axes: B batch, T frames (50 Hz), C channels, V labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import ModelConfig, build
from indextts2.models.semantic.w2v_bert import W2VBert
from indextts2.text.phonemes import SPACE_ID, VOCABULARY_SIZE
from indextts2.training.data import Corpus, LengthBatches, pad
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import RunConfig, Stage

BLANK = 0


@dataclass(frozen=True)
class SemanticStageConfig:
    """Batches, loss weights and augmentation of the encoder stage."""

    rows_per_batch: int = 1800
    middle_weight: float = 0.5
    dropout: float = 0.1
    # Largest relative change of the mel axis (a speaker with another vocal tract) and of the tempo.
    warp: float = 0.14
    tempo: float = 0.1
    noise: float = 0.1
    time_masks: int = 2
    time_mask_frames: int = 8
    band_masks: int = 2
    band_mask_width: int = 10


class Recogniser(nn.Module):
    """The encoder with CTC heads after its feature layer and its last layer."""

    def __init__(self, config: ModelConfig, dropout: float) -> None:
        super().__init__()
        if config.w2v_bert is None:
            raise ValueError("the configuration has no section w2v_bert")
        layers, channels = config.w2v_bert.num_hidden_layers, config.w2v_bert.hidden_size
        self.feature_layer = config.semantic_output_layer
        self.encoder = W2VBert(config.w2v_bert, layers)
        self.dropout = nn.Dropout(dropout)
        self.middle_head = nn.Linear(channels, VOCABULARY_SIZE)
        self.head = nn.Linear(channels, VOCABULARY_SIZE)

    def forward(self, fbank: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, 160) -> features (B, T, C), middle and last log-probabilities (B, T, V) in float32."""
        states = list(self.encoder.hidden_states(fbank, mask))
        features, last = states[self.feature_layer], states[-1]
        middle = F.log_softmax(self.middle_head(self.dropout(features)).float(), dim=-1)
        return features, middle, F.log_softmax(self.head(self.dropout(last)).float(), dim=-1)


def ctc_labels(text_ids: list[int]) -> list[int]:
    """Phonemes with stress and punctuation, without blanks between words."""
    return [piece for piece in text_ids if piece != SPACE_ID]


def frame_mask(lengths: Tensor, frames: int) -> Tensor:
    """(B, T) with 1 in the first `lengths` frames of each row."""
    return (torch.arange(frames, device=lengths.device)[None] < lengths[:, None]).long()


def _resize(x: Tensor, positions: Tensor, axis: int) -> Tensor:
    """Read `x` at fractional `positions` along `axis` by linear interpolation; positions outside clamp."""
    positions = positions.clamp(0, x.shape[axis] - 1)
    low = positions.floor().long()
    high = (low + 1).clamp(max=x.shape[axis] - 1)
    part = (positions - low).unsqueeze(1 - axis)
    return x.index_select(axis, low) * (1 - part) + x.index_select(axis, high) * part


def augment(fbank: np.ndarray, config: SemanticStageConfig, rng: np.random.Generator) -> np.ndarray:
    """Another speaker, tempo and recording of one clip (T, 160): warped bands, stretched time, noise, masks."""
    x = torch.from_numpy(fbank.astype(np.float32)).reshape(-1, 80)
    bands = x.shape[1]
    x = _resize(x, torch.arange(bands) * float(np.exp(rng.uniform(-config.warp, config.warp))), 1)
    tempo = float(np.exp(rng.uniform(-config.tempo, config.tempo)))
    frames = 2 * max(1, int(x.shape[0] / tempo / 2))
    x = _resize(x, torch.arange(frames) * tempo, 0)
    noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
    x = x * float(rng.uniform(0.9, 1.1)) + noise * config.noise * float(rng.random())
    for _ in range(config.band_masks):
        width = int(rng.integers(0, config.band_mask_width + 1))
        start = int(rng.integers(0, bands - width))
        x[:, start : start + width] = 0
    for _ in range(config.time_masks):
        width = int(rng.integers(0, 2 * config.time_mask_frames + 1))
        start = int(rng.integers(0, max(1, len(x) - width)))
        x[start : start + width] = 0
    return x.reshape(-1, 160).numpy()


class SemanticStage(Stage):
    """CTC training of `Recogniser` on the fbank of the corpus."""

    name = "semantic"

    def __init__(self, corpus: Corpus, model_config: ModelConfig, config: SemanticStageConfig, seed: int = 1) -> None:
        self.corpus, self.config = corpus, config
        self.model: Recogniser = Recogniser(model_config, config.dropout)
        self.labels = {number: ctc_labels(corpus.text_ids(number)) for number in range(len(corpus))}
        lengths = {number: corpus.clips[number].length("fbank") for number in corpus.train}
        # CTC needs a frame per label and one between equal neighbours; tempo changes take a tenth away.
        usable = {n: frames for n, frames in lengths.items() if frames > 1.3 * len(self.labels[n])}
        self.batches = LengthBatches(usable, config.rows_per_batch, seed)

    def collate(self, numbers: list[int], rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Pad clips; `rng` given: augmented."""
        rows = [self.corpus.get("fbank", number).astype(np.float32) for number in numbers]
        if rng is not None:
            rows = [augment(row, self.config, rng) for row in rows]
        labels = [np.asarray(self.labels[number]) for number in numbers]
        return {
            "fbank": torch.from_numpy(pad(rows)).to(self.device),
            "lengths": torch.tensor([len(row) for row in rows], device=self.device),
            "labels": torch.from_numpy(np.concatenate(labels)).to(self.device),
            "label_lengths": torch.tensor([len(row) for row in labels], device=self.device),
        }

    def next_batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.collate(self.batches.next(), rng)

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        mask = frame_mask(batch["lengths"], batch["fbank"].shape[1])
        _, middle, last = self.model(batch["fbank"], mask)
        final, half = (
            F.ctc_loss(x.transpose(0, 1), batch["labels"], batch["lengths"], batch["label_lengths"], blank=BLANK)
            for x in (last, middle)
        )
        return {"loss": final + self.config.middle_weight * half, "last": final, "middle": half}

    def evaluate(self) -> dict[str, float]:
        """Phoneme error rates of greedy decoding on the held-out speakers."""
        errors, total = {"middle": 0, "last": 0}, 0
        for number in self.corpus.held_out:
            batch = self.collate([number], None)
            _, middle, last = self.model(batch["fbank"], None)
            total += len(self.labels[number])
            for name, output in (("middle", middle), ("last", last)):
                errors[name] += edit_distance(greedy(output[0]), self.labels[number])
        return {f"phoneme_error_{name}": count / max(total, 1) for name, count in errors.items()}

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.load_state(state)


def greedy(log_probabilities: Tensor) -> list[int]:
    """Best path of CTC output (T, V): repeats joined, blanks dropped."""
    path = torch.unique_consecutive(log_probabilities.argmax(-1)).tolist()
    return [label for label in path if label != BLANK]


def edit_distance(first: list[int], second: list[int]) -> int:
    """Levenshtein distance of two sequences."""
    row = np.arange(len(second) + 1)
    target = np.asarray(second)
    for i, item in enumerate(first, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (target != item))
        # Insertions: the least value to the left plus the way to it.
        row = np.concatenate(([i], best)) - np.arange(len(row))
        row = np.minimum.accumulate(row) + np.arange(len(row))
    return int(row[-1])


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on the prepared corpus in ``work/data`` with its default run."""
    stage = SemanticStage(
        Corpus(work / "data"), embedded_model_config(), build(SemanticStageConfig, changes or {}, "stage")
    )
    return stage, RunConfig(output=str(work / "semantic"), minutes=25, learning_rate=2e-3, warmup_steps=300)
