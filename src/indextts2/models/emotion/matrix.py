"""Emotion matrix: recorded emotion vectors, chosen by the likeness of their speakers (spec 04 sections 3 and 4).

R rows, D width of the GPT, S width of the speaker embedding, E = 8 emotions, each a block of consecutive rows.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.errors import CheckpointError, UsageError


def merge_emotion_vectors(speaker: Tensor, emotion: Tensor, alpha: float) -> Tensor:
    """Emotion vectors (1, D) of the speaker's own audio and of the emotion audio -> (1, D).

    `alpha` 0 is the speaker's own, 1 that of the emotion audio; values outside extrapolate.
    """
    return speaker + alpha * (emotion - speaker)


class EmotionMatrix:
    """Rows of recorded emotions with the embeddings of who spoke them."""

    def __init__(self, spk_matrix: Tensor, emo_matrix: Tensor, emo_num: Sequence[int]) -> None:
        """Args:
            spk_matrix: (R, S) speaker embeddings, aligned with `emo_matrix`.
            emo_matrix: (R, D).
            emo_num: rows of each emotion, in the order of `EMOTIONS`.

        Raises:
            CheckpointError: the row counts differ, or a matrix is no finite float matrix.
        """
        for name, matrix in (("speaker matrix", spk_matrix), ("emotion matrix", emo_matrix)):
            if matrix.ndim != 2 or matrix.shape[0] != sum(emo_num):
                raise CheckpointError(
                    f"{name} has shape {tuple(matrix.shape)}, but emo_num {tuple(emo_num)} sums to {sum(emo_num)} rows"
                )
            if not matrix.is_floating_point() or not torch.isfinite(matrix).all():
                raise CheckpointError(f"{name} must hold finite floats; it is {matrix.dtype} or holds NaN or infinity")
        self._speakers = spk_matrix.detach().split(list(emo_num))
        self._emotions = emo_matrix.detach().split(list(emo_num))

    @property
    def width(self) -> int:
        """D."""
        return self._emotions[0].shape[1]

    def nearest_rows(self, style: Tensor) -> list[int]:
        """For each emotion the row whose speaker is most similar (cosine) to `style` (1, S)."""
        if style.numel() != self._speakers[0].shape[1]:
            raise UsageError(f"the style has {style.numel()} values; the matrix needs {self._speakers[0].shape[1]}")
        style = style.detach().reshape(1, -1).to(self._speakers[0])
        return [int(F.cosine_similarity(style, block, dim=1).argmax()) for block in self._speakers]

    def random_rows(self, rng: random.Random) -> list[int]:
        """For each emotion, in order, a random row."""
        return [rng.randint(0, len(block) - 1) for block in self._emotions]

    def mix(self, vector: Sequence[float], rows: Sequence[int]) -> Tensor:
        """Weighted sum of the chosen rows (1, D)."""
        chosen = torch.stack([block[row] for block, row in zip(self._emotions, rows, strict=True)])
        weights = torch.tensor(vector, dtype=torch.float32, device=chosen.device)
        return (weights[:, None] * chosen).sum(dim=0, keepdim=True)

    def blend(self, vector: Sequence[float], style: Tensor, merged: Tensor, rng: random.Random | None = None) -> Tensor:
        """The emotion vector (1, D) for the weights `vector` (E numbers).

        The recorded rows enter by their weights, `merged` (1, D), the emotion of the audio, by what is left of 1.
        Weights that sum to more than 1 give it a negative weight, as in the reference.

        Args:
            style: (1, S) embedding of the speaker, which picks the rows.
            rng: picks the rows at random instead.
        """
        rows = self.nearest_rows(style) if rng is None else self.random_rows(rng)
        mixed = self.mix(vector, rows).to(merged)
        left = 1 - torch.tensor(vector, dtype=torch.float32).sum()
        return mixed + left.to(merged) * merged
