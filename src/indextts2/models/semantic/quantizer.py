"""Factorised vector quantiser: codes are looked up in a narrow space, by cosine.

Axes: B batch, T frames (50 Hz), C feature channels, D codebook channels, N rows (any leading axes), K codes.
Source: Improved VQGAN (Yu et al. 2021) as in DAC (Kumar et al. 2023) and MaskGCT's RepCodec; spec 05 section 4.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import SemanticCodecConfig
from indextts2.errors import GenerationError
from indextts2.models.convolution import PointwiseConv

# Rows looked up at once: bounds the table of similarities (rows x codes) to 32 MiB at 8192 codes.
LOOKUP_ROWS = 1024


class QuantizerTraining(NamedTuple):
    """What a training step needs; the two losses are means over real frames and channels."""

    indices: Tensor  # (B, T) int64
    embedding: Tensor  # (B, T, C), the gradient passes straight through to the latents
    latents: Tensor  # (B, T, D) before quantisation
    codebook_loss: Tensor  # moves codes to latents
    commitment_loss: Tensor  # moves latents to codes


class FactorizedVectorQuantizer(nn.Module):
    """C -> D projection, nearest code by cosine, D -> C projection of the code as it is (not normalised)."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.in_project = PointwiseConv(config.hidden_size, config.codebook_dim)
        self.out_project = PointwiseConv(config.codebook_dim, config.hidden_size)
        self.codebook = nn.Embedding(config.codebook_size, config.codebook_dim)

    @torch.no_grad()
    def lookup(self, latents: Tensor) -> Tensor:
        """Index (..., ) int64 of the code with the largest cosine to each latent (..., D); ties take the lowest."""
        with torch.autocast(latents.device.type, enabled=False):
            # The argmax of the cosine is that of the reference's negated squared distance of unit vectors.
            codes = F.normalize(self.codebook.weight.float(), dim=-1, eps=1e-12)
            rows = F.normalize(latents.flatten(0, -2).float(), dim=-1, eps=1e-12)
            indices = [F.linear(chunk, codes).argmax(dim=-1) for chunk in rows.split(LOOKUP_ROWS)]
        return torch.cat(indices).view(latents.shape[:-1])

    def embed(self, indices: Tensor) -> Tensor:
        """Features (..., C) of code ids (...)."""
        return self.out_project(self.codebook(indices))

    def check_range(self, indices: Tensor) -> None:
        """Raise GenerationError where an id has no row in the codebook."""
        if indices.numel() == 0:
            return
        low, high = (int(value) for value in torch.aminmax(indices))
        last = self.codebook.num_embeddings - 1
        if low < 0 or high > last:
            bad = low if low < 0 else high
            raise GenerationError(
                f"semantic code {bad} lies outside 0..{last}; cut the start and stop tokens away before decoding"
            )

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise encoder output (B, T, C) to code ids (B, T) int64 and their features (B, T, C)."""
        indices = self.lookup(self.in_project(features))
        return indices, self.embed(indices)

    def forward_with_losses(self, features: Tensor, keep: Tensor | None = None) -> QuantizerTraining:
        """Quantise for training: straight-through features and the two losses of VQ-VAE (van den Oord et al. 2017).

        Args:
            features: encoder output (B, T, C).
            keep: (B, T) boolean, false for frames that count in no loss; None when all do.
        """
        latents = self.in_project(features)
        indices = self.lookup(latents)
        codes = self.codebook(indices)
        straight_through = latents + (codes - latents).detach()
        return QuantizerTraining(
            indices,
            self.out_project(straight_through),
            latents,
            codebook_loss=_mean_square(codes - latents.detach(), keep),
            commitment_loss=_mean_square(latents - codes.detach(), keep),
        )


class ResidualQuantizer(nn.Module):
    """The list of quantisers under the checkpoint's name; IndexTTS2 has exactly one."""

    def __init__(self, config: SemanticCodecConfig) -> None:
        super().__init__()
        self.quantizers = nn.ModuleList([FactorizedVectorQuantizer(config)])


def _mean_square(difference: Tensor, keep: Tensor | None) -> Tensor:
    """Mean of the squares of (B, T, D) over the frames that count."""
    return (difference if keep is None else difference[keep]).square().mean()
