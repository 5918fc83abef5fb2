"""Training stage of s2mel: codes and latents -> mel, by conditional flow matching (Lipman et al. 2023).

As in the pipeline, the prompt is another recording of the speaker and goes through the length regulator on its own;
the style vector is that of the prompt. A reader that is not shipped says the mel from the regulator's output and the
style (the prior loss of Grad-TTS, Popov et al. 2021): the regulator learns by it in minutes what the flow alone would
teach it in hours, so the first steps train nothing else. GPT latents take part when ``latents.npy`` lies in the corpus,
and so do the copies of its clips (`indextts2.training.copies`) once they are written.
B batch, K codes, P prompt frames, N target frames, T = P + N, M mel bands, C condition channels, D content features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.audio.features import LOG_MEL_FLOOR, fbank_mean_normalised
from indextts2.config import ModelConfig, build
from indextts2.models.s2mel.dit import DiT
from indextts2.models.s2mel.flow_matching import flow_matching_loss, integrate
from indextts2.models.s2mel.latent_projection import LatentProjection
from indextts2.models.s2mel.length_regulator import LengthRegulator
from indextts2.models.semantic.codec import SemanticCodec
from indextts2.models.speaker.campplus import CampPlus
from indextts2.training.codec import load_codec
from indextts2.training.data import AROUSED, ENCODER_RATE_HZ, Corpus, LengthBatches, copies, pad
from indextts2.training.embedded import embedded_model_config
from indextts2.training.runner import RunConfig, Stage, load_trained


@dataclass(frozen=True)
class S2MelStageConfig:
    """Batches and dropouts. Prompt lengths in mel frames are drawn once per batch."""

    frames_per_batch: int = 2000
    prompt_frames: tuple[int, int] = (40, 220)
    # Some batches get prompts as long as users bring, so that the positions of long sequences are trained.
    long_prompt_frames: int = 1000
    long_prompt_share: float = 0.1
    guidance_dropout: float = 0.1
    # Early times decide what is said; above 1 they are drawn more often.
    time_power: float = 1.7
    # Part of the items that go without latents: the codes alone must do, too.
    latent_dropout: float = 0.3
    # Which copies of the clips take part, of those that were written.
    copies: tuple[str, ...] = (AROUSED,)
    # Standard deviations, in natural logarithms, of a curve over the mel bands that is added to a prompt and its target
    # alike: other microphones, which the style does not know of, so that the prompt is listened to.
    colour: float = 0.0
    colour_knots: int = 7
    content_weight: float = 1.0
    # So many steps train the regulator and the reader only; they cost a tenth of the others.
    content_steps: int = 800
    reader_width: int = 256
    evaluation_clips: int = 12


class Source(NamedTuple):
    """Clips to be said and, in another corpus or the same, what their speakers' prompts are taken from."""

    targets: Corpus
    prompts: Corpus
    # Of the prompts: (clips, S).
    styles: np.ndarray


class Item(NamedTuple):
    """A clip to be said."""

    source: int
    clip: int


class S2Mel(nn.Module):
    """The three networks between the GPT and the vocoder, under the names that checkpoints use, and the reader."""

    mel_mean: Tensor

    def __init__(self, config: ModelConfig, reader_width: int = 256) -> None:
        super().__init__()
        s2mel = config.s2mel
        self.length_regulator = LengthRegulator(s2mel.length_regulator)
        inner = s2mel.latent_projection or ()
        self.latent_projection = LatentProjection(config.gpt.model_dim, inner, config.semantic_codec.hidden_size)
        # The latents add nothing until training finds what they are good for.
        last = self.latent_projection[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.dit = DiT(s2mel)
        bands = s2mel.mel.n_mels
        read = s2mel.length_regulator.channels + s2mel.style_dim
        self.reader = nn.Sequential(nn.Linear(read, reader_width), nn.GELU(), nn.Linear(reader_width, bands))
        self.register_buffer("mel_mean", torch.zeros(bands))

    def start_from_mean(self, mel_mean: Tensor) -> None:
        """Let the velocity start at the mean mel (M,): the data are not normalised, so it would have to be learnt."""
        bias = self.dit.conv2.bias
        assert bias is not None
        with torch.no_grad():
            bias.copy_(mel_mean)
            self.mel_mean.copy_(mel_mean)

    def read(self, mu: Tensor, style: Tensor) -> Tensor:
        """The mel (B, T, M) that the condition `mu` (B, T, C) and the style (B, S) speak of."""
        features = torch.cat((mu, style[:, None].expand(-1, mu.shape[1], -1)), dim=-1)
        return self.reader(features) + self.mel_mean


@dataclass(frozen=True)
class S2MelBatch:
    """Padded clips: prompts and targets apart, as content features and as mels."""

    prompt_content: Tensor  # (B, K_p, D)
    prompt_codes: Tensor  # (B,) valid rows of it
    prompt_mel: Tensor  # (B, P, M)
    prompt_frames: Tensor  # (B,)
    content: Tensor  # (B, K, D)
    codes: Tensor  # (B,)
    mel: Tensor  # (B, N, M)
    frames: Tensor  # (B,)
    latents: Tensor | None  # (B, K, GPT width)
    style: Tensor  # (B, S)
    colour: Tensor  # (B, M) added to both mels for the flow

    def to(self, device: torch.device) -> S2MelBatch:
        moved = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self).items()}
        return S2MelBatch(**moved)


def join_frames(first: Tensor, first_lengths: Tensor, second: Tensor, second_lengths: Tensor) -> Tensor:
    """Append the valid frames of `second` (B, N, X) to those of `first` (B, P, X), item by item: (B, T, X)."""
    total = int((first_lengths + second_lengths).max())
    rows = []
    for a, n, b, m in zip(first, first_lengths.tolist(), second, second_lengths.tolist(), strict=True):
        rows.append(F.pad(torch.cat((a[:n], b[:m])), (0, 0, 0, total - n - m)))
    return torch.stack(rows)


class S2MelStage(Stage):
    """Flow matching on pairs of clips of one speaker."""

    name = "s2mel"
    outer_layers = ("reader.2", "dit.conv2")

    def __init__(
        self, corpus: Corpus, model_config: ModelConfig, codec: SemanticCodec, config: S2MelStageConfig, seed: int = 1
    ) -> None:
        self.corpus, self.config, self.codec = corpus, config, codec.eval().requires_grad_(False)
        self.sampler = model_config.s2mel
        self.device = torch.device("cpu")
        self.model: S2Mel = S2Mel(model_config, config.reader_width)
        sample = np.concatenate([corpus.get("mel", i) for i in corpus.train[:: max(1, len(corpus.train) // 200)]])
        self.model.start_from_mean(torch.from_numpy(sample.astype(np.float32).mean(0)))
        self.has_latents = (corpus.folder / "latents.npy").exists()
        self.sources = _sources(corpus, config.copies if self.has_latents else ())
        self.items = [Item(n, clip) for n, source in enumerate(self.sources) for clip in source.targets.train]
        lengths = {i: self.sources[n].targets.clips[clip].length("mel") for i, (n, clip) in enumerate(self.items)}
        self.batches = LengthBatches(lengths, config.frames_per_batch, seed)

    def next_batch(self, rng: np.random.Generator) -> S2MelBatch:
        """One batch of targets with prompts of one length, cut to the size that memory allows."""
        config = self.config
        numbers = self.batches.next()
        wanted = int(rng.integers(*config.prompt_frames, endpoint=True))
        if rng.random() < config.long_prompt_share:
            wanted = int(rng.integers(config.prompt_frames[1], config.long_prompt_frames, endpoint=True))
        longest = max(self.batches.lengths[i] for i in numbers)
        room = max(1, config.frames_per_batch // (longest + wanted))
        return self.collate([self.items[i] for i in numbers[:room]], wanted, rng, is_varied=True)

    def collate(
        self, targets: list[Item], prompt_frames: int, rng: np.random.Generator, is_varied: bool = False
    ) -> S2MelBatch:
        """Choose a prompt of about `prompt_frames` for each target, a colour if `is_varied`, and pad everything."""
        prompts = [self._prompt(item, prompt_frames, rng) for item in targets]
        clips = [(self.sources[n].targets, clip) for n, clip in targets]
        codes = [_codes(corpus, clip) for corpus, clip in clips]
        mels = [corpus.get("mel", clip).astype(np.float32) for corpus, clip in clips]
        latents = None
        if self.has_latents:
            rows = [corpus.get("latents", clip, like="fbank").astype(np.float32) for corpus, clip in clips]
            latents = torch.from_numpy(pad(rows))
        return S2MelBatch(
            prompt_content=self._embed([p[0] for p in prompts]), prompt_codes=_lengths([p[0] for p in prompts]),
            prompt_mel=torch.from_numpy(pad([p[1] for p in prompts])), prompt_frames=_lengths([p[1] for p in prompts]),
            content=self._embed(codes), codes=_lengths(codes),
            mel=torch.from_numpy(pad(mels)), frames=_lengths(mels), latents=latents,
            style=torch.from_numpy(np.stack([p[2] for p in prompts])),
            colour=torch.from_numpy(self._colours(len(targets), rng if is_varied else None)),
        )  # fmt: skip

    def _colours(self, count: int, rng: np.random.Generator | None) -> np.ndarray:
        """Curves (count, M): straight lines between knots, and a level; zeros without `rng`."""
        bands, config = len(self.model.mel_mean), self.config
        if rng is None:
            return np.zeros((count, bands), np.float32)
        knots = rng.normal(0, config.colour, (count, config.colour_knots)) + rng.normal(0, config.colour, (count, 1))
        place = np.linspace(0, config.colour_knots - 1, bands)
        return np.stack([np.interp(place, np.arange(config.colour_knots), row) for row in knots]).astype(np.float32)

    @torch.no_grad()
    def _embed(self, codes: list[np.ndarray]) -> Tensor:
        """Content features (B, K, D) of padded codes."""
        return self.codec.embed(torch.from_numpy(pad(codes)))

    def _prompt(self, target: Item, frames: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes (K,), mel (P, M) and style (S,) of other clips of the speaker, one after the other, cut to `frames`."""
        spoken, corpus, styles = self.sources[target.source]
        clip = spoken.clips[target.clip]
        own = corpus.by_speaker[clip.speaker]
        others = [i for i in own if corpus.clips[i].path != clip.path] or own
        chosen, length = [], 0
        while length < frames:
            chosen.append(int(rng.choice(others)))
            length += corpus.clips[chosen[-1]].length("mel")
        mel = np.concatenate([corpus.get("mel", i) for i in chosen]).astype(np.float32)
        codes = np.concatenate([_codes(corpus, i) for i in chosen])
        keep = min(frames, len(mel))
        return codes[: max(1, round(keep * len(codes) / len(mel)))], mel[:keep], styles[chosen[0]]

    def content(self, batch: S2MelBatch, keep_latents: Tensor | None) -> Tensor:
        """Codes and latents of the targets (B, K, D); `keep_latents` (B,) of zeros and ones."""
        if batch.latents is None:
            return batch.content
        projected = self.model.latent_projection(batch.latents)
        if keep_latents is not None:
            projected = projected * keep_latents[:, None, None]
        return batch.content + projected

    def condition(self, batch: S2MelBatch, keep_latents: Tensor | None = None) -> Tensor:
        """mu (B, T, C): prompt and target through the regulator apart, then joined."""
        regulator = self.model.length_regulator
        prompt = regulator(batch.prompt_content, batch.prompt_frames, batch.prompt_codes)
        target = regulator(self.content(batch, keep_latents), batch.frames, batch.codes)
        return join_frames(prompt, batch.prompt_frames, target, batch.frames)

    def losses(self, batch: S2MelBatch, step: int) -> dict[str, Tensor]:
        batch = batch.to(self.device)
        keep = (torch.rand(len(batch.frames)) >= self.config.latent_dropout).to(self.device, torch.float32)
        mel = join_frames(batch.prompt_mel, batch.prompt_frames, batch.mel, batch.frames)
        mu, lengths = self.condition(batch, keep).float(), batch.prompt_frames + batch.frames
        valid = torch.arange(mu.shape[1], device=mu.device) < lengths[:, None]
        content = (self.model.read(mu, batch.style) - mel)[valid].abs().mean()
        if self.model.training and step < self.config.content_steps:
            return {"loss": content, "content": content}
        heard = (mel + batch.colour[:, None]).clamp(min=math.log(LOG_MEL_FLOOR))
        flow = flow_matching_loss(
            self.model.dit, heard.transpose(1, 2), batch.prompt_frames, mu, batch.style, lengths,
            torch.default_generator, self.config.guidance_dropout, self.config.time_power,
        )  # fmt: skip
        return {"loss": flow + self.config.content_weight * content, "flow": flow, "content": content}

    def sample(self, batch: S2MelBatch, seed: int = 1) -> list[Tensor]:
        """Predicted mels (N, M) of the targets, with the default steps and guidance."""
        batch = batch.to(self.device)
        mu = self.condition(batch)
        lengths = batch.prompt_frames + batch.frames
        noise = torch.randn((len(mu), batch.mel.shape[2], mu.shape[1]), generator=torch.Generator().manual_seed(seed))
        sampler = self.sampler
        mel = integrate(
            self.model.dit, mu, batch.prompt_mel.transpose(1, 2), batch.style, noise.to(self.device),
            steps=sampler.steps, sway=sampler.sway, cfg_rate=sampler.cfg_rate, prompt_lengths=batch.prompt_frames,
            lengths=lengths,
        ).transpose(1, 2)  # fmt: skip
        bounds = zip(mel, batch.prompt_frames.tolist(), lengths.tolist(), strict=True)
        return [item[start:end] for item, start, end in bounds]

    def evaluate(self) -> dict[str, float]:
        """Held-out clips with prompts of their speakers: flow loss, and L1 between sampled and true mels."""
        rng = np.random.default_rng(0)
        torch.manual_seed(0)
        clips = self.corpus.held_out[:: max(1, len(self.corpus.held_out) // self.config.evaluation_clips)]
        batches = [self.collate([Item(0, i)], self.config.prompt_frames[1], rng) for i in clips]
        distances = [float((self.sample(b)[0].cpu() - b.mel[0]).abs().mean()) for b in batches]
        losses = [self.losses(b, 0) for b in batches for _ in range(4)]
        means = {name: float(np.mean([float(row[name]) for row in losses])) for name in ("flow", "content")}
        return {**means, "mel_l1": float(np.mean(distances))}

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.load_state(state)


def _sources(corpus: Corpus, wanted: Sequence[str]) -> list[Source]:
    """The corpus and its copies. Other speakers have prompts of their own, other moods those of plain speech."""
    copied = {name: copy for name, copy in copies(corpus).items() if name in wanted}
    pairs = [(corpus, corpus), *((copy, corpus if name == AROUSED else copy) for name, copy in copied.items())]
    return [Source(targets, prompts, np.load(prompts.folder / "styles.npy")) for targets, prompts in pairs]


def _codes(corpus: Corpus, clip: int) -> np.ndarray:
    return corpus.get("codes", clip, like="fbank").astype(np.int64)


def _lengths(rows: list[np.ndarray]) -> Tensor:
    return torch.tensor([len(row) for row in rows])


def load_speaker_encoder(work: Path) -> CampPlus:
    """The trained encoder of stage `speaker` in evaluation mode."""
    prefix = "encoder."
    state = {k.removeprefix(prefix): v for k, v in load_trained(work / "speaker").items() if k.startswith(prefix)}
    encoder = CampPlus(embedded_model_config().campplus)
    encoder.load_state_dict(state)
    return encoder.eval()


@torch.no_grad()
def write_styles(corpus: Corpus, encoder: CampPlus) -> None:
    """Style vectors of all clips: ``styles.npy``, float32 (clips, S)."""
    rows = []
    for number in range(len(corpus)):
        fbank = fbank_mean_normalised(corpus.audio(number, ENCODER_RATE_HZ))
        rows.append(encoder(torch.from_numpy(fbank)[None])[0].numpy())
    np.save(corpus.folder / "styles.npy", np.stack(rows))


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on codes (stage `codec`) and styles (stage `speaker`); styles are written first when absent."""
    corpus = Corpus(work / "data")
    if not (corpus.folder / "styles.npy").exists():
        write_styles(corpus, load_speaker_encoder(work))
    stage = S2MelStage(
        corpus, embedded_model_config(), load_codec(work), build(S2MelStageConfig, changes or {}, "stage")
    )
    return stage, RunConfig(output=str(work / "s2mel"), minutes=50, learning_rate=1e-3, final_learning_rate=5e-5)
