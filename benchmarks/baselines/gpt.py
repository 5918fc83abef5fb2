"""The GPT as transformers-style code decodes: a row of everything per beam, caches grown and reordered by copying.

B beams, N prefix rows, M codes, D width, H heads, K = D / H, V codes of the head.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.layers import dense, join_heads, split_heads
from indextts2.config import GenerationConfig
from indextts2.models.gpt.decoders import Decoder, make_decoder
from indextts2.models.gpt.transformer import CausalSelfAttention, Conv1D, TransformerBlock
from indextts2.models.gpt.unified_voice import UnifiedVoice

Past = tuple[Tensor, Tensor]
"""Keys and values (B, H, R, K) of one layer."""


class PlainGPT:
    """Prefill, decoding and second pass with the weights of our module."""

    def __init__(self, ours: UnifiedVoice) -> None:
        self.ours = ours

    def forward(self, x: Tensor, past: list[Past] | None) -> tuple[Tensor, list[Past]]:
        """New rows (B, n, D) behind `past` -> their states, and the keys and values of all rows."""
        held = past[0][0].shape[2] if past else 0
        rows = held + x.shape[1]
        visible = torch.tril(torch.ones(rows, rows, dtype=torch.bool, device=x.device))[held:rows]
        kept = []
        for layer, block in enumerate(cast("list[TransformerBlock]", list(self.ours.gpt.h))):
            attended, state = _attend(block.attn, block.ln_1(x), visible, past[layer] if past else None)
            x = x + attended
            x = x + _linear(block.mlp.c_proj, F.gelu(_linear(block.mlp.c_fc, block.ln_2(x)), approximate="tanh"))
            kept.append(state)
        return self.ours.final_norm(self.ours.gpt.ln_f(x)), kept

    def prefill(self, prefix: Tensor, beams: int) -> tuple[Tensor, list[Past]]:
        """Prefix (1, N, D) and start token, once per beam: logits (B, V) and the cache."""
        rows = torch.cat((prefix, self.embed([self.ours.config.start_mel_token], 0)), dim=1)
        states, past = self.forward(rows.repeat(beams, 1, 1), None)
        return dense(self.ours.mel_head, states[:, -1]), past

    def embed(self, codes: list[int], position: int) -> Tensor:
        """One code per beam -> (B, 1, D)."""
        ids = torch.tensor(codes, device=self.ours.device)[:, None]
        return self.ours.embed_codes(ids, torch.full_like(ids, position))

    def latents(self, prefix: Tensor, codes: Tensor) -> Tensor:
        """The second pass: everything again, with the start and stop tokens; (M,) -> (1, M, D)."""
        config = self.ours.config
        sequence = torch.cat(
            (codes.new_tensor([config.start_mel_token]), codes, codes.new_tensor([config.stop_mel_token]))
        )
        positions = torch.arange(len(sequence), device=codes.device)
        rows = torch.cat((prefix, self.ours.embed_codes(sequence, positions)[None]), dim=1)
        states, _ = self.forward(rows, None)
        mel = states[:, prefix.shape[1] :]
        dense(self.ours.mel_head, mel)  # a training-style forward also gives logits
        return mel[:, :-2]


def _attend(attention: CausalSelfAttention, x: Tensor, visible: Tensor, past: Past | None) -> tuple[Tensor, Past]:
    q, k, v = (split_heads(part, attention.heads) for part in _linear(attention.c_attn, x).chunk(3, -1))
    if past is not None:
        k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
    scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
    scores = torch.where(visible, scores, torch.finfo(scores.dtype).min)
    attended = F.softmax(scores, dim=-1) @ v
    return _linear(attention.c_proj, join_heads(attended)), (k, v)


def _linear(layer: Conv1D, x: Tensor) -> Tensor:
    """GPT-2's linear map, whose weight is stored (in, out)."""
    return torch.addmm(layer.bias, x.flatten(0, -2), layer.weight).unflatten(0, x.shape[:-1])


class PlainRequest:
    """One segment in decoding. The choice of codes is our decoder's: what is compared is the network and its cache."""

    def __init__(self, model: PlainGPT, prefix: Tensor, config: GenerationConfig, generator: torch.Generator) -> None:
        self.model = model
        self.decoder: Decoder = make_decoder(config, model.ours.config, generator)
        logits, self.past = model.prefill(prefix, config.num_beams)
        self.decoder.accept(logits[:1].float(), None)

    def advance(self) -> list[int]:
        """One step; the codes that it fed."""
        decoder, model = self.decoder, self.model
        fed = decoder.codes
        if len(decoder.parents) > 1:
            order = torch.tensor(decoder.parents, device=model.ours.device)
            self.past = [(k.index_select(0, order), v.index_select(0, order)) for k, v in self.past]
        position = model.ours.decode_position(decoder.new_tokens - 1)
        states, self.past = model.forward(model.embed(fed, position), self.past)
        decoder.accept(dense(model.ours.mel_head, states[:, -1]).float(), None)
        return fed
