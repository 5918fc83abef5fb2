"""Stage `gpt`: text to codes, conditioned on another clip of the same speaker.

What makes a few hours of speech enough: one attention head in two layers is shown the forced alignment of text and
codes (guided attention in the sense of Tachibana et al. 2018, here with the CTC path of the encoder), positions start
as sinusoids whose rates match, codes start as the phonemes that they are heard in, and a part of the input codes is
replaced at random, so that the model reads the text instead of trusting its past. Emotion is learnt as rate of
speech: codes and the emotion's clip are stretched alike, the speaker's clip is not.
Axes: B batch, L text tokens, M codes, T condition frames, D width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import GPTConfig, build
from indextts2.models.gpt.unified_voice import IGNORED_TARGET, PositionEmbedding, UnifiedVoice, training_targets
from indextts2.text.phonemes import SPACE_ID, phoneme_ids
from indextts2.training.alignment import ctc_path, token_of_frame
from indextts2.training.augment import stretch
from indextts2.training.codec import load_codec, load_recogniser, write_codes
from indextts2.training.data import Clip, Corpus, LengthBatches, pad
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import RunConfig, Stage, load_trained
from indextts2.training.semantic import Recogniser


@dataclass(frozen=True)
class GPTStageConfig:
    """Batches, loss weights and augmentation of the GPT stage."""

    rows_per_batch: int = 2000
    text_weight: float = 0.02
    alignment_weight: float = 0.5
    aligned_layers: tuple[int, ...] = (1, 3)
    # Of two probes of the first block: the phoneme and its predecessor at each code, the predecessor at each token.
    probe_weight: float = 0.2
    # Part of the input codes that is replaced by random ones: drawn per clip between 0 and this.
    corruption: float = 0.3
    # Part of the batches whose items are two clips of one speaker in a row, once short ones have been learnt.
    joined: float = 0.2
    joined_from_epoch: int = 3
    # Part of the items that is cut down to the last words of its text, so that a word alone is spoken as such.
    short: float = 0.25
    short_words: int = 4
    # The conditioners are dear: most batches see short pieces of the other clip, some see (almost) all of it.
    short_condition_frames: int = 80
    max_condition_frames: int = 400
    long_conditions: float = 0.2
    codes_per_token: float = 3.25
    # Clips are spoken up to exp(tempo) times slower or faster, and the emotion's clip with them: so rate is emotion.
    tempo: float = 0.25
    tempo_share: float = 0.5


class GPTTrainer(nn.Module):
    """UnifiedVoice, the attention of one head per guided layer as a loss, and probes of the first block.

    The probes make the first block tell what is being said and what came before, on both sides: by these text and
    codes can be matched in the next block.
    """

    def __init__(self, config: GPTConfig, stage: GPTStageConfig) -> None:
        super().__init__()
        self.voice = UnifiedVoice(config, with_text_head=True)
        initialise_positions(self.voice.text_pos_embedding, stage.codes_per_token)
        initialise_positions(self.voice.mel_pos_embedding, 1.0)
        self.code_probe = nn.Linear(config.model_dim, 2 * config.number_text_tokens)
        self.text_probe = nn.Linear(config.model_dim, config.number_text_tokens)
        # Outputs of the last forward pass: queries, keys and values (B, T, 3 D) of guided layers, the first block's.
        self.heard: dict[str, Tensor] = {}
        self.guided = tuple(f"h.{layer}.attn.c_attn" for layer in stage.aligned_layers)
        for name in (*self.guided, "h.0"):
            self._listen(name)

    def _listen(self, name: str) -> None:
        def keep(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            self.heard[name] = output

        self.voice.gpt.get_submodule(name).register_forward_hook(keep)

    def alignment_loss(self, rows: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy between the first head's attention and the wanted key.

        Args:
            rows: (B, M) sequence rows of the queries; targets: (B, M) their wanted keys, IGNORED_TARGET to skip.
        """
        width = self.voice.gpt.head_dim
        total = rows.new_zeros((), dtype=torch.float32)
        for qkv in (self.heard[name] for name in self.guided):
            model_dim = qkv.shape[-1] // 3
            query = qkv[..., :width].gather(1, rows[..., None].expand(-1, -1, width))
            key = qkv[..., model_dim : model_dim + width]
            scores = (query @ key.transpose(1, 2)).float() / math.sqrt(width)
            future = torch.arange(key.shape[1], device=rows.device) > rows[..., None]
            scores = scores.masked_fill(future, -1e4)
            total = total + F.cross_entropy(scores.flatten(0, 1), targets.flatten(), ignore_index=IGNORED_TARGET)
        return total / max(1, len(self.guided))

    def probe_loss(self, text: Tensor, first_text: int, rows: Tensor, aligned: Tensor) -> Tensor:
        """Cross entropy of the two probes.

        Args:
            text: (B, L) padded ids; first_text: the row of the first; rows: (B, M) those of the codes' inputs;
            aligned: (B, M) text index of every input code, IGNORED_TARGET to skip.
        """
        states, size = self.heard["h.0"], self.voice.config.number_text_tokens
        known = aligned != IGNORED_TARGET
        index = aligned.clamp(min=0)
        now = text.gather(1, index).where(known, IGNORED_TARGET)
        before = text.gather(1, (index - 1).clamp(min=0)).where(known, IGNORED_TARGET)
        at_codes = self.code_probe(states.gather(1, rows[..., None].expand(-1, -1, states.shape[-1]))).float()
        at_text = self.text_probe(states[:, first_text + 1 : first_text + text.shape[1]]).float()
        return (
            F.cross_entropy(at_codes[..., :size].flatten(0, 1), now.flatten(), ignore_index=IGNORED_TARGET)
            + F.cross_entropy(at_codes[..., size:].flatten(0, 1), before.flatten(), ignore_index=IGNORED_TARGET)
            + F.cross_entropy(at_text.flatten(0, 1), text[:, :-1].flatten(), ignore_index=0)
        )


@torch.no_grad()
def initialise_positions(embedding: PositionEmbedding, rate: float) -> None:
    """Sinusoids of `rate` * position in the usual size of embeddings, so that equal times look alike."""
    table = embedding.emb.weight
    frequencies = torch.exp(torch.arange(0, table.shape[1], 2) * (-math.log(10000.0) / table.shape[1]))
    angles = torch.arange(table.shape[0])[:, None] * rate * frequencies
    table.copy_(torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1) * 0.03)


@torch.no_grad()
def initialise_codes(voice: UnifiedVoice, codes: np.ndarray, phonemes: np.ndarray) -> None:
    """Let each code start as the mean of the phonemes that it was heard in, so that code and text find each other.

    Args:
        codes, phonemes: (N,) the code and the text id of every frame of the training clips.
    """
    shape = (voice.mel_embedding.num_embeddings, voice.text_embedding.num_embeddings)
    counts = torch.from_numpy(np.bincount(codes * shape[1] + phonemes, minlength=shape[0] * shape[1]).reshape(shape))
    heard = counts.sum(dim=1) > 0
    text = voice.text_embedding.weight
    mean = F.normalize(counts[heard].to(text) @ text, dim=-1)
    voice.mel_embedding.weight[heard] = mean * text.norm(dim=-1).mean()


class GPTStage(Stage):
    """Teacher-forced training of `GPTTrainer` on the codes in ``data/codes.npy``."""

    name = "gpt"
    outer_layers = ("voice.mel_head", "voice.text_head", "code_probe", "text_probe")

    def __init__(self, corpus: Corpus, gpt: GPTConfig, config: GPTStageConfig, alignment: np.ndarray) -> None:
        self.corpus, self.config, self.gpt_config = corpus, config, gpt
        self.alignment = alignment
        self.model: GPTTrainer = GPTTrainer(gpt, config)
        self.text = [np.asarray(corpus.text_ids(number)) for number in range(len(corpus))]
        clips = [self._clip(number) for number in corpus.train]
        heard = np.concatenate([text[aligned] for text, _, aligned in clips])
        initialise_codes(self.model.voice, np.concatenate([codes for _, codes, _ in clips]), heard)
        lengths = {n: len(self.text[n]) + corpus.clips[n].length("fbank") for n in corpus.train}
        self.batches = LengthBatches(lengths, config.rows_per_batch, seed=1)

    def _clip(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Text ids (L,), codes (M,) and the text index (M,) of every code."""
        codes = self.corpus.get("codes", number, like="fbank").astype(np.int64)
        start, end = self.corpus.clips[number].spans["fbank"]
        return self.text[number], codes, self.alignment[start:end].astype(np.int64)

    def _joined(self, number: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One clip with another one of the speaker behind it, where that fits."""
        text, codes, aligned = self._clip(number)
        more_text, more_codes, more_aligned = self._clip(self.corpus.other_clip(number, rng))
        text_room, code_room = self.gpt_config.max_text_tokens, self.gpt_config.max_mel_tokens
        if len(text) + 1 + len(more_text) > text_room or len(codes) + len(more_codes) > code_room:
            return text, codes, aligned
        joined = np.concatenate((text, [SPACE_ID], more_text))
        return joined, np.concatenate((codes, more_codes)), np.concatenate((aligned, more_aligned + len(text) + 1))

    def _maybe_short(
        self, item: tuple[np.ndarray, np.ndarray, np.ndarray], rng: np.random.Generator | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For a part of the items only the last one to `short_words` words, with what is aligned to them."""
        if rng is None or rng.random() >= self.config.short:
            return item
        text, codes, aligned = item
        starts = np.flatnonzero(text == SPACE_ID) + 1
        wanted = int(rng.integers(1, self.config.short_words + 1))
        if len(starts) < wanted:
            return item
        first = int(starts[-wanted])
        spoken = aligned >= first
        return (text[first:], codes[spoken], aligned[spoken] - first) if spoken.any() else item

    def _tempo(self, rng: np.random.Generator | None) -> float:
        """How many times longer an item is spoken: 1 for the evaluation and for a part of the items."""
        if rng is None or rng.random() >= self.config.tempo_share:
            return 1.0
        return float(np.exp(rng.uniform(-self.config.tempo, self.config.tempo)))

    def condition(self, number: int, frames: int, rng: np.random.Generator | None) -> np.ndarray:
        """At most `frames` features (T, C) of another clip of the speaker."""
        other = self.corpus.other_clip(number, rng or np.random.default_rng(number))
        features = self.corpus.get("features", other, like="fbank")
        room = len(features) - frames
        start = int(rng.integers(0, room + 1)) if rng is not None and room > 0 else 0
        return features[start : start + frames].astype(np.float32)

    def collate(self, numbers: list[int], rng: np.random.Generator | None) -> dict[str, Tensor]:
        may_join = rng is not None and self.batches.epoch >= self.config.joined_from_epoch
        if rng is not None and may_join and rng.random() < self.config.joined:
            numbers = numbers[::2]
            items = [self._joined(number, rng) for number in numbers]
        else:
            items = [self._maybe_short(self._clip(number), rng) for number in numbers]
        tempos = [self._tempo(rng) for _ in items]
        room = self.gpt_config.max_mel_tokens
        items = [
            (text, stretch(codes, tempo)[:room], stretch(aligned, tempo)[:room])
            for (text, codes, aligned), tempo in zip(items, tempos, strict=True)
        ]
        is_long = rng is None or rng.random() < self.config.long_conditions
        frames = self.config.max_condition_frames if is_long else self.config.short_condition_frames
        conditions = [self.condition(number, frames, rng) for number in numbers]
        emotions = [stretch(rows, tempo) for rows, tempo in zip(conditions, tempos, strict=True)]
        batch = {
            "text": pad([text for text, _, _ in items]),
            "text_lengths": np.asarray([len(text) for text, _, _ in items]),
            "codes": pad([codes for _, codes, _ in items]),
            "code_lengths": np.asarray([len(codes) for _, codes, _ in items]),
            "aligned": pad([aligned for _, _, aligned in items], IGNORED_TARGET),
            "condition": pad(conditions),
            "condition_lengths": np.asarray([len(condition) for condition in conditions]),
            "emotion": pad(emotions),
            "emotion_lengths": np.asarray([len(emotion) for emotion in emotions]),
        }
        batch["inputs"] = batch["codes"] if rng is None else self._corrupt(batch["codes"], rng)
        return {name: torch.from_numpy(value).to(self.device) for name, value in batch.items()}

    def _corrupt(self, codes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Replace a random part of the codes (B, M), in runs of about two, by random codes."""
        part = rng.uniform(0, self.config.corruption, (len(codes), 1))
        hit = rng.random(codes.shape) < part / 2
        hit[:, 1:] |= hit[:, :-1]
        return np.where(hit, rng.integers(0, self.gpt_config.start_mel_token, codes.shape), codes)

    def next_batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.collate(self.batches.next(), rng)

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        voice, config = self.model.voice, self.gpt_config
        speaker = voice.speaker_latents(batch["condition"], batch["condition_lengths"])
        emotion = voice.emotion_vector(batch["emotion"], batch["emotion_lengths"])
        conditioning = voice.conditioning(speaker, emotion)
        text_logits, mel_logits, _ = voice.training_forward(
            conditioning, batch["text"], batch["text_lengths"], batch["inputs"], batch["code_lengths"]
        )
        assert text_logits is not None
        mel_targets = training_targets(batch["codes"], batch["code_lengths"], config.stop_mel_token)
        text_targets = training_targets(batch["text"], batch["text_lengths"], config.stop_text_token)
        mel = F.cross_entropy(mel_logits.float().flatten(0, 1), mel_targets.flatten(), ignore_index=IGNORED_TARGET)
        text = F.cross_entropy(text_logits.float().flatten(0, 1), text_targets.flatten(), ignore_index=IGNORED_TARGET)
        first_text = conditioning.shape[1] + 1
        rows = (first_text + batch["text_lengths"] + 1)[:, None] + torch.arange(
            batch["codes"].shape[1], device=self.device
        )
        last_row = conditioning.shape[1] + batch["text"].shape[1] + 2 + batch["codes"].shape[1]
        keys = torch.where(batch["aligned"] == IGNORED_TARGET, IGNORED_TARGET, batch["aligned"] + first_text)
        rows = rows.clamp(max=last_row)
        alignment = self.model.alignment_loss(rows, keys)
        # The row behind the one that predicts a code has that code as its input.
        probes = self.model.probe_loss(batch["text"], first_text, (rows + 1).clamp(max=last_row), batch["aligned"])
        guidance = self.config.alignment_weight * alignment + self.config.probe_weight * probes
        loss = mel + self.config.text_weight * text + guidance
        accuracy = (mel_logits.argmax(-1) == mel_targets)[mel_targets != IGNORED_TARGET].float().mean()
        return {"loss": loss, "mel": mel, "text": text, "alignment": alignment, "probes": probes, "accuracy": accuracy}

    def evaluate(self) -> dict[str, float]:
        """Teacher-forced losses on the held-out speakers."""
        sums: dict[str, float] = {}
        numbers = sorted(self.corpus.held_out, key=lambda n: len(self.text[n]))
        groups = [numbers[start : start + 16] for start in range(0, len(numbers), 16)]
        for group in groups:
            for name, value in self.losses(self.collate(group, None), 0).items():
                sums[name] = sums.get(name, 0.0) + float(value)
        return {f"held_out_{name}": value / len(groups) for name, value in sums.items()}

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.load_state(state)


@torch.no_grad()
def write_alignment(corpus: Corpus, recogniser: Recogniser) -> None:
    """``alignment.npy``: for every frame of the corpus the index of the text token that is being said (int16)."""
    aligned = []
    for number in range(len(corpus)):
        text = np.asarray(corpus.text_ids(number))
        tokens = np.flatnonzero(text != SPACE_ID)
        fbank = torch.from_numpy(corpus.get("fbank", number).astype(np.float32))[None]
        output = recogniser(fbank, None)[2][0].numpy()
        aligned.append(token_of_frame(ctc_path(output, text[tokens].tolist()), tokens, len(output)))
    np.save(corpus.folder / "alignment.npy", np.concatenate(aligned).astype(np.int16))


@torch.no_grad()
def teacher_forced_latents(
    voice: UnifiedVoice, clip: Clip, codes: np.ndarray, condition: np.ndarray, emotion: np.ndarray
) -> np.ndarray:
    """The state (K, D) that predicts each of the codes (K,) of a clip, for features (T, C) of speaker and emotion."""
    device = voice.text_embedding.weight.device
    speaker, feeling = (torch.from_numpy(x.astype(np.float32))[None].to(device) for x in (condition, emotion))
    conditioning = voice.conditioning(voice.speaker_latents(speaker), voice.emotion_vector(feeling))
    sequences = (phoneme_ids(clip.phonemes), codes.astype(np.int64).tolist())
    ids, spoken = (torch.tensor([sequence], device=device) for sequence in sequences)
    lengths = (torch.tensor([x.shape[1]], device=device) for x in (ids, spoken))
    text_length, code_length = lengths
    latents = voice.training_forward(conditioning, ids, text_length, spoken, code_length)[2]
    return latents[0].float().cpu().numpy()


def write_latents(stage: GPTStage) -> None:
    """``latents.npy``: float16 (frames, D), the state that predicts each code, for tuning s2mel as it will be used.

    Every clip is conditioned on another clip of its speaker, as in training.
    """
    corpus, voice, rows = stage.corpus, stage.model.voice.eval(), []
    frames = stage.config.max_condition_frames
    for number in range(len(corpus)):
        condition = stage.condition(number, frames, None)
        codes = corpus.get("codes", number, like="fbank")
        rows.append(teacher_forced_latents(voice, corpus.clips[number], codes, condition, condition))
    np.save(corpus.folder / "latents.npy", np.concatenate(rows).astype(np.float16))


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on the codes of the trained codec; codes and alignment are written first when they are absent."""
    corpus = Corpus(work / "data")
    if not (corpus.folder / "codes.npy").exists():
        write_codes(corpus, load_codec(work))
    if not (corpus.folder / "alignment.npy").exists():
        write_alignment(corpus, load_recogniser(work))
    alignment = np.load(corpus.folder / "alignment.npy")
    stage = GPTStage(corpus, embedded_model_config().gpt, build(GPTStageConfig, changes or {}, "stage"), alignment)
    return stage, RunConfig(output=str(work / "gpt"), minutes=75, learning_rate=7e-4, warmup_steps=60)


def load_stage(work: Path, device: str) -> GPTStage:
    """The stage with its trained weights."""
    stage, _ = make(work)
    assert isinstance(stage, GPTStage)
    stage.device = torch.device(device)
    stage.model.load_state_dict(load_trained(work / "gpt"))
    stage.model.to(stage.device)
    return stage
