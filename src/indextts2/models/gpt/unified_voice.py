"""UnifiedVoice: from reference features and text to semantic codes and latents (spec 03).

B batch, T reference frames, C feature width, D model width, S speaker latents, P = S + 2 conditioning rows,
L text tokens, M semantic codes, N prefix rows = P + L + 2, V codes of the mel head.

The sequence is [conditioning; start text, text, stop text; start mel, codes]. A state at mel row i predicts code
i + 1 and is that code's latent.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import ConformerConfig, GPTConfig
from indextts2.errors import ConfigError, UsageError
from indextts2.models.dense import Kept, Linear
from indextts2.models.gpt.bursts import Bursts
from indextts2.models.gpt.cache import KVCache, Lane
from indextts2.models.gpt.conformer import ConformerEncoder
from indextts2.models.gpt.perceiver import PerceiverResampler
from indextts2.models.gpt.quantised import MOST_ROWS, RoundedWeight, rounded
from indextts2.models.gpt.transformer import INIT_STD, LAYER_NORM_EPS, GPT2Stack

IGNORED_TARGET = -100
"""Target of rows without one, the `ignore_index` of torch's cross entropy."""
_making_bursts = threading.Lock()


@dataclass
class Prompt:
    """A prefilled request: prefix and start token lie in `cache`, whose first `rows` rows they are.

    `hidden` (1, D) is the state at the start token: the first latent, and what the first code is predicted from.
    """

    cache: KVCache
    rows: int
    hidden: Tensor


class PositionEmbedding(nn.Module):
    """Learnt positions; the table is called `emb` in checkpoints."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(rows, width)

    def forward(self, positions: Tensor) -> Tensor:
        return self.emb(positions)


class UnifiedVoice(nn.Module):
    """Text-to-semantic model. `with_text_head` is needed for training only; inference drops those weights."""

    UNUSED_KEYS: tuple[str, ...] = (r"(emo_)?conditioning_encoder\.embed\.pos_enc\.pe",)
    TEXT_HEAD_KEYS = (r"text_head\.(weight|bias)",)

    def __init__(self, config: GPTConfig, *, with_text_head: bool = False) -> None:
        super().__init__()
        _check(config)
        self.config = config
        width = config.model_dim
        self.conditioning_encoder = ConformerEncoder(config.condition_module, config.condition_input_dim)
        self.perceiver_encoder = _perceiver(config.condition_module, width, config.condition_latents)
        self.emo_conditioning_encoder = ConformerEncoder(config.emo_condition_module, config.condition_input_dim)
        self.emo_perceiver_encoder = _perceiver(config.emo_condition_module, config.emotion_latent_dim, 1)
        self.emovec_layer = Linear(config.emotion_latent_dim, width)
        self.emo_layer = Linear(width, width)
        self.speed_emb = nn.Embedding(2, width)
        self.text_embedding = nn.Embedding(config.number_text_tokens + 1, width)
        self.mel_embedding = nn.Embedding(config.number_mel_codes, width)
        self.text_pos_embedding = PositionEmbedding(config.text_positions, width)
        self.mel_pos_embedding = PositionEmbedding(config.mel_positions, width)
        self.gpt = GPT2Stack(width, config.heads, config.layers)
        self.final_norm = nn.LayerNorm(width, eps=LAYER_NORM_EPS)
        self.mel_head = Linear(width, config.number_mel_codes)
        self._rounded_head: Kept[RoundedWeight] = Kept()
        self._bursts: Kept[Bursts] = Kept()
        self.text_head = Linear(width, config.number_text_tokens + 1) if with_text_head else None
        if not with_text_head:
            self.UNUSED_KEYS = type(self).UNUSED_KEYS + self.TEXT_HEAD_KEYS
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=INIT_STD)

    @property
    def device(self) -> torch.device:
        return self.mel_head.weight.device

    @property
    def bursts(self) -> Bursts | None:
        """The decoder in bursts, where that is how this device decodes: on CUDA."""
        if self.device.type != "cuda":
            return None
        with _making_bursts:  # two would not know of each other's requests
            return self._bursts.get(self.mel_head.weight, "bursts", lambda _: Bursts(self))

    @property
    def conditioning_rows(self) -> int:
        """P: speaker latents and two speed rows."""
        return self.config.condition_latents + 2

    # Conditioning

    def speaker_latents(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Semantic features (B, T, C) of the speaker -> (B, S, D); `lengths` (B,) where the batch is padded."""
        encoded, mask = self.conditioning_encoder(features, lengths)
        return self.perceiver_encoder(encoded, mask)

    def emotion_vector(self, features: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Semantic features (B, T, C) -> emotion vector (B, D)."""
        encoded, mask = self.emo_conditioning_encoder(features, lengths)
        latent = self.emo_perceiver_encoder(encoded, mask).squeeze(1)
        return self.emo_layer(self.emovec_layer(latent))

    def conditioning(self, speaker_latents: Tensor, emotion_vector: Tensor) -> Tensor:
        """(B, S, D) and (B, D) -> the first rows of every sequence (B, P, D)."""
        # Row 1 of the speed table comes before row 0.
        speed = self.speed_emb.weight.flip(0).expand(speaker_latents.shape[0], -1, -1)
        return torch.cat((speaker_latents + emotion_vector[:, None, :], speed), dim=1)

    # Inference

    def prefix(self, conditioning: Tensor, text_ids: Tensor) -> Tensor:
        """Conditioning (1, P, D) and the ids (L,) of one segment -> embeddings (1, N, D).

        Raises:
            UsageError: more text than the position table holds, or an id that is none of the text's.
        """
        config = self.config
        ids = text_ids.reshape(-1).to(self.device)
        if len(ids) > config.max_text_tokens:
            raise UsageError(
                f"a segment has {len(ids)} text tokens; at most {config.max_text_tokens} fit (use shorter segments)"
            )
        bounds = torch.tensor([config.start_text_token, config.stop_text_token], device=ids.device)
        if torch.isin(ids, bounds).any() or (len(ids) and not 0 <= int(ids.min()) <= int(ids.max()) < self._text_rows):
            raise UsageError(
                f"text ids must lie in 0..{self._text_rows - 1} and not be {config.start_text_token} (start) or "
                f"{config.stop_text_token} (stop); got {ids.tolist()}"
            )
        sequence = torch.cat((bounds[:1], ids, bounds[1:]))
        return torch.cat((conditioning, self._embed_text(sequence[None])), dim=1)

    @property
    def _text_rows(self) -> int:
        return self.text_embedding.num_embeddings

    def _embed_text(self, ids: Tensor) -> Tensor:
        """Ids (B, n) with their start token -> (B, n, D)."""
        positions = torch.arange(ids.shape[1], device=ids.device)
        return self.text_embedding(ids) + self.text_pos_embedding(positions)

    def embed_codes(self, codes: Tensor, positions: Tensor) -> Tensor:
        """Codes and mel positions of equal shape -> the same shape with D behind."""
        return self.mel_embedding(codes) + self.mel_pos_embedding(positions)

    def decode_position(self, index: int) -> int:
        """Mel position at which the decoder feeds the code `index` (0-based)."""
        return index + (2 if self.config.skips_first_mel_position else 1)

    @torch.no_grad()
    def prefill(self, prefix: Tensor, extra_rows: int = 0) -> Prompt:
        """Run the prefix (1, N, D) and the start token; the cache gets room for `extra_rows` more."""
        start = torch.tensor([[self.config.start_mel_token]], device=prefix.device)
        rows = torch.cat((prefix, self.embed_codes(start, torch.zeros_like(start))), dim=1).squeeze(0)
        cache = self.gpt.new_cache(len(rows) + extra_rows)
        hidden = self.gpt.extend(rows, [Lane(cache, len(rows), causal=True)])
        return Prompt(cache, len(rows), self.final_norm(hidden[-1:]))

    @torch.no_grad()
    def step(self, codes: Tensor, positions: Tensor, lanes: list[Lane], weights: str = "full") -> Tensor:
        """Feed codes (n,) at mel positions (n,), the rows of all lanes in order. Returns their states (n, D)."""
        return self.final_norm(self.gpt.extend(self.embed_codes(codes, positions), lanes, weights))

    def logits(self, hidden: Tensor, weights: str = "full") -> Tensor:
        """States (…, D) -> float32 logits (…, V); with rounded `weights` (see `quantised`) of few states (n, D)."""
        head = self.mel_head
        if weights == "full" or hidden.shape[0] > MOST_ROWS:
            logits: Tensor = head(hidden)
        else:
            logits = self._rounded_head.get(head.weight, weights, lambda weight: rounded(weight, "int8"))(
                hidden, head.bias
            )
        return logits.float()

    @torch.no_grad()
    def latents(self, prompt: Prompt, codes: Tensor) -> Tensor:
        """Second pass: codes (M,) -> latents (1, M, D), at contiguous mel positions.

        The prefix and the start token are not computed again. The rows that decoding left in the cache are dropped.
        """
        prompt.cache.truncate(prompt.rows)
        return LatentStream(self, prompt).extend(codes)

    # Training

    def training_forward(
        self, conditioning: Tensor, text_ids: Tensor, text_lengths: Tensor, codes: Tensor, code_lengths: Tensor
    ) -> tuple[Tensor | None, Tensor, Tensor]:
        """Teacher-forced pass over padded batches; start and stop tokens are added here.

        Args:
            conditioning: (B, P, D).
            text_ids: (B, L) padded with any id.
            text_lengths: (B,) valid ids.
            codes: (B, M) padded with any code.
            code_lengths: (B,) valid codes.

        Returns:
            Text logits (B, L + 1, number of text tokens + 1), None without a text head; mel logits (B, M + 1, V);
            latents (B, M, D). Row i of the logits predicts token i of the sequence with its stop token behind, see
            `training_targets`. Rows behind the valid ones hold nothing of use; their latents are zero.
        """
        config = self.config
        text = _with_bounds(text_ids, text_lengths, config.start_text_token, config.stop_text_token)
        mel = _with_bounds(codes, code_lengths, config.start_mel_token, config.stop_mel_token)[:, :-1]
        mel_rows = self.embed_codes(mel, torch.arange(mel.shape[1], device=mel.device).expand_as(mel))
        rows = torch.cat((conditioning, self._embed_text(text), mel_rows), dim=1)
        # The gap behind a short text is closed, so that all padding is at the end and plain causality suffices.
        first_mel = conditioning.shape[1] + text_lengths + 2
        shift = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape[:2])
        gap = text_ids.shape[1] - text_lengths
        source = torch.where(shift < first_mel[:, None], shift, shift + gap[:, None]).clamp(max=rows.shape[1] - 1)
        hidden = self.final_norm(self.gpt(_take_rows(rows, source)))
        mel_index = first_mel[:, None] + torch.arange(mel.shape[1], device=mel.device)
        mel_hidden = _take_rows(hidden, mel_index.clamp(max=rows.shape[1] - 1))
        text_logits = None
        if self.text_head is not None:
            text_logits = self.text_head(hidden[:, conditioning.shape[1] :][:, : text.shape[1] - 1])
        valid = torch.arange(codes.shape[1], device=codes.device) < code_lengths[:, None]
        return text_logits, self.mel_head(mel_hidden), mel_hidden[:, :-1] * valid[..., None]


class LatentStream:
    """The second pass in pieces: latents of codes as they settle, equal to those of the whole pass.

    It appends to the prompt's cache. While that prompt is being decoded, use `LatentStream.beside`.
    """

    def __init__(self, model: UnifiedVoice, prompt: Prompt) -> None:
        self._model = model
        self._prompt = prompt
        self._last_code: Tensor | None = None  # (1,), not yet fed
        self._fed = 0

    @classmethod
    def beside(cls, model: UnifiedVoice, prompt: Prompt) -> LatentStream:
        """A stream with a copy of the prefix, that leaves the prompt to its decoder."""
        return cls(model, Prompt(prompt.cache.fork(prompt.rows), prompt.rows, prompt.hidden))

    @torch.no_grad()
    def extend(self, codes: Tensor) -> Tensor:
        """The next codes (m,) -> their latents (1, m, D)."""
        codes = codes.reshape(-1).to(self._model.device)
        if not len(codes):
            return self._prompt.hidden.new_empty(1, 0, self._prompt.hidden.shape[1])
        if self._last_code is None:
            states = torch.cat((self._prompt.hidden, self._feed(codes[:-1])))
        else:
            states = self._feed(torch.cat((self._last_code, codes[:-1])))
        self._last_code = codes[-1:]
        return states[None]

    def _feed(self, codes: Tensor) -> Tensor:
        count, cache = len(codes), self._prompt.cache
        if not count:
            return self._prompt.hidden[:0]
        positions = torch.arange(self._fed + 1, self._fed + count + 1, device=codes.device)
        self._fed += count
        ahead = torch.full((count, cache.length + count), float("-inf"), dtype=cache.dtype, device=codes.device)
        return self._model.step(codes, positions, [Lane(cache, count, mask=ahead.triu(cache.length + 1))])


def training_targets(tokens: Tensor, lengths: Tensor, stop_token: int) -> Tensor:
    """What the rows of `training_forward` predict: (B, n) and (B,) -> (B, n + 1), the stop token behind the valid
    ones and IGNORED_TARGET behind that."""
    index = torch.arange(tokens.shape[1] + 1, device=tokens.device)
    targets = F.pad(tokens, (0, 1)).masked_fill(index > lengths[:, None], IGNORED_TARGET)
    return targets.masked_fill(index == lengths[:, None], stop_token)


def _with_bounds(tokens: Tensor, lengths: Tensor, start: int, stop: int) -> Tensor:
    """(B, n) -> (B, n + 2): start token, valid tokens, stop tokens."""
    valid = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
    stopped = F.pad(torch.where(valid, tokens, stop), (0, 1), value=stop)
    return F.pad(stopped, (1, 0), value=start)


def _take_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Row `index` (B, n) of `rows` (B, T, D) -> (B, n, D)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def _perceiver(config: ConformerConfig, width: int, latents: int) -> PerceiverResampler:
    return PerceiverResampler(
        config.output_size, width, latents, heads=config.attention_heads, head_dim=config.perceiver_head_dim,
        depth=config.perceiver_depth, mult=config.perceiver_mult,
    )  # fmt: skip


def _check(config: GPTConfig) -> None:
    if config.model_dim % config.heads:
        raise ConfigError(f"gpt.model_dim {config.model_dim} is no multiple of gpt.heads {config.heads}")
    if not config.start_mel_token < config.stop_mel_token < config.number_mel_codes:
        raise ConfigError(
            f"gpt.start_mel_token {config.start_mel_token} and gpt.stop_mel_token {config.stop_mel_token} must be in "
            f"this order and below gpt.number_mel_codes {config.number_mel_codes}"
        )
