"""Training stage of the vocoder: log-mel spectrogram -> waveform.

Spectral losses on random crops first; from `adversarial_after_steps` on, discriminators join. A part of the crops is
spoken by speakers that the corpus does not have, into other microphones: people do not sound like the corpus.
B batch, M mel bands, F frames, N samples.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indextts2.audio.features import LogMel
from indextts2.config import BigVGANConfig, MelConfig, build
from indextts2.errors import ConfigError
from indextts2.models.vocoder.bigvgan import AMPBlock, BigVGAN, SourceFilter
from indextts2.models.vocoder.source import PitchEstimator
from indextts2.training.augment import change_colour, change_level, shift_speaker
from indextts2.training.data import Corpus
from indextts2.training.discriminators import Discriminators
from indextts2.training.embedded import embedded_model_config
from indextts2.training.losses import (
    MultiResolutionSTFTLoss,
    MultiScaleMelLoss,
    discriminator_loss,
    feature_matching_loss,
    generator_loss,
    hum_loss,
)
from indextts2.training.runner import RunConfig, Stage, load_trained

# Typical size of the weights whose learning rate is that of the run.
REFERENCE_WEIGHT = 0.08
# Frames on either side of a crop that its pitch depends on; more than its mel does.
CONTEXT_FRAMES = PitchEstimator.reach


@dataclass(frozen=True)
class VocoderStageConfig:
    """Crops and weights of the losses."""

    crop_frames: int = 32
    batch_size: int = 4
    mel_weight: float = 15.0
    stft_weight: float = 1.0
    hum_weight: float = 15.0
    feature_weight: float = 2.0
    # 0: never.
    adversarial_after_steps: int = 0
    discriminator_learning_rate: float = 2e-4
    # Part of the crops that is changed: pitch and formants by factors of these logarithms, colour and level.
    varied: float = 0.5
    shifts: tuple[float, float] = (-0.25, 0.5)
    colour: float = 0.5
    evaluation_clips: int = 16


class VocoderStage(Stage):
    """BigVGAN on crops of training clips."""

    name = "vocoder"

    def __init__(self, corpus: Corpus, network: BigVGANConfig, config: VocoderStageConfig) -> None:
        self.corpus, self.network, self.config = corpus, network, config
        self.clips = [i for i in corpus.train if corpus.clips[i].length("mel") > config.crop_frames + 2]
        self.device = torch.device("cpu")
        self.model: BigVGAN = BigVGAN(network)
        _initialise(self.model)
        if network.pitch_channels:
            self.model.source.requires_grad_(False)
        rate = network.sampling_rate
        self.log_mel = LogMel(MelConfig())
        self.mel_loss, self.stft_loss = MultiScaleMelLoss(rate), MultiResolutionSTFTLoss()
        self.discriminators = Discriminators() if config.adversarial_after_steps else None
        if self.discriminators is not None:
            self.discriminator_optimizer = torch.optim.AdamW(
                self.discriminators.parameters(), lr=config.discriminator_learning_rate, betas=(0.8, 0.99)
            )

    def next_batch(self, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """Mels (B, M, F), waveforms (B, N) and, for a model with a source, excitations (B, 3, N) of random crops."""
        crops = [self._crop(int(clip), rng) for clip in rng.choice(self.clips, self.config.batch_size)]
        return tuple(torch.cat(parts) for parts in zip(*crops, strict=True))

    @torch.no_grad()
    def _crop(self, clip: int, rng: np.random.Generator) -> tuple[Tensor, ...]:
        """One item of a batch. Its mel and pitch are those of a longer piece, as if the whole clip had been read."""
        hop, frames = self.network.hop_size, self.config.crop_frames
        samples, start = self._piece(self.corpus.audio(clip), rng)
        mel = self.log_mel(torch.from_numpy(samples)[None])
        wave = torch.from_numpy(samples[start * hop : (start + frames) * hop])[None]
        if not self.network.pitch_channels:
            return mel[..., start : start + frames], wave
        pitch = self.model.source.estimator(mel.to(self.device))
        excitation = self.model.source.excitation(pitch, start, start + frames).cpu()
        # Noise that the generator cannot know by heart.
        excitation[0, -1] = torch.from_numpy(rng.standard_normal(excitation.shape[-1], dtype=np.float32))
        return mel[..., start : start + frames], wave, excitation

    def _piece(self, samples: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
        """A random crop of a clip (N,) with its surroundings, a part of them changed, and the crop's first frame."""
        config, hop = self.config, self.network.hop_size
        # One frame more than the crop leaves room to begin with a frame of the piece.
        wanted = (config.crop_frames + 1) * hop
        is_varied = rng.random() < config.varied
        factor = float(np.exp(rng.uniform(*config.shifts))) if is_varied else 1.0
        factor = min(factor, len(samples) / (wanted + hop))
        length, context = math.ceil(wanted * factor), math.ceil(CONTEXT_FRAMES * hop * factor)
        at = int(rng.integers(0, len(samples) - length + 1))
        first = max(0, at - context)
        piece = samples[first : at + length + context]
        if is_varied:
            piece = shift_speaker(piece, factor, self.network.sampling_rate)
            piece = change_level(change_colour(piece, rng, config.colour), rng)
            piece = piece / max(1.0, float(np.abs(piece).max()))
        return piece, math.ceil((at - first) / factor / hop)

    def losses(self, batch: tuple[Tensor, ...], step: int) -> dict[str, Tensor]:
        self._to_device()
        mel, wave, *excitation = (x.to(self.device) for x in batch)
        fake = self.model.generate(mel, *excitation)[:, 0]
        with torch.autocast(self.device.type, enabled=False):
            losses = {"mel": self.mel_loss(fake.float(), wave), "stft": self.stft_loss(fake.float(), wave)}
            losses["hum"] = hum_loss(fake.float(), self.network.hop_size)
        config = self.config
        total = (
            config.mel_weight * losses["mel"] + config.stft_weight * losses["stft"] + config.hum_weight * losses["hum"]
        )
        if self.discriminators is not None and step >= self.config.adversarial_after_steps:
            losses |= self._adversarial(self.discriminators, wave, fake)
            total = total + losses["generator"] + self.config.feature_weight * losses["features"]
        return {"loss": total, **losses}

    def _adversarial(self, discriminators: Discriminators, wave: Tensor, fake: Tensor) -> dict[str, Tensor]:
        """One update of the discriminators, then the two losses that they give the generator."""
        real_scores, _ = discriminators(wave)
        fake_scores, _ = discriminators(fake.detach())
        judged = discriminator_loss(real_scores, fake_scores)
        self.discriminator_optimizer.zero_grad(set_to_none=True)
        judged.backward()
        self.discriminator_optimizer.step()
        with torch.no_grad():
            _, real_features = discriminators(wave)
        discriminators.requires_grad_(False)
        scores, features = discriminators(fake)
        discriminators.requires_grad_(True)
        return {
            "discriminator": judged.detach(),
            "generator": generator_loss(scores),
            "features": feature_matching_loss(real_features, features),
        }

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Steps in proportion to the size of the weights.

        The few channels of the last stages have weights ten times those of the first ones; with one rate for all,
        the first are noisy while the last hardly move.
        """
        groups: dict[float, list[nn.Parameter]] = {}
        for module in self.model.modules():
            scale = 1.0
            if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
                scale = round(_fan_in(module) ** -0.5 / REFERENCE_WEIGHT, 3)
            for parameter in module.parameters(recurse=False):
                if not parameter.requires_grad:
                    continue
                groups.setdefault(scale, []).append(parameter)
        return [{"params": parameters, "scale": scale} for scale, parameters in sorted(groups.items())]

    def _to_device(self) -> None:
        for part in (self.log_mel, self.mel_loss, self.stft_loss, self.discriminators):
            if part is not None:
                part.to(self.device)

    def evaluate(self) -> dict[str, float]:
        """Copy-synthesis of held-out clips: losses, and L1 between the mels of synthesis and original."""
        rows: list[dict[str, float]] = []
        self._to_device()
        clips = self.corpus.held_out[:: max(1, len(self.corpus.held_out) // self.config.evaluation_clips)]
        for clip in clips:
            mel = torch.from_numpy(self.corpus.get("mel", clip).T.astype(np.float32))[None].to(self.device)
            fake = self.model(mel)[:, 0].float()
            wave = torch.from_numpy(self.corpus.audio(clip))[None, : fake.shape[-1]].to(self.device)
            rows.append({
                "mel": float(self.mel_loss(fake, wave)), "stft": float(self.stft_loss(fake, wave)),
                "input_mel_l1": float((self.log_mel(fake) - mel).abs().mean()),
            })  # fmt: skip
        return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}

    def state(self) -> dict[str, Any]:
        if self.discriminators is None:
            return {}
        return {
            "discriminators": self.discriminators.state_dict(),
            "discriminator_optimizer": self.discriminator_optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        # A run may turn the adversary on at a resume: then it starts fresh.
        if self.discriminators is not None and state:
            self._to_device()
            self.discriminators.load_state_dict(state["discriminators"])
            self.discriminator_optimizer.load_state_dict(state["discriminator_optimizer"])


def _fan_in(module: nn.Conv1d | nn.ConvTranspose1d) -> int:
    """Inputs that one output sample is summed from."""
    if isinstance(module, nn.ConvTranspose1d):
        return module.in_channels * module.kernel_size[0] // module.stride[0]
    return module.in_channels * module.kernel_size[0]


def _initialise(model: BigVGAN) -> None:
    """Normal weights that keep the variance; residual branches and the output start small."""
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.ConvTranspose1d):
            nn.init.normal_(module.weight, std=_fan_in(module) ** -0.5)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for block in model.modules():
            if isinstance(block, AMPBlock):
                for convolution in block.convs2.parameters():
                    convolution.mul_(0.2)
            elif isinstance(block, SourceFilter):
                block.filter.weight.mul_(0.05)
        model.conv_post.weight.mul_(0.3)


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on the prepared corpus in ``work/data`` with its default run."""
    network = embedded_model_config().bigvgan
    if network is None:
        raise ConfigError("the configuration of the embedded voice has no section bigvgan")
    stage = VocoderStage(Corpus(work / "data"), network, build(VocoderStageConfig, changes or {}, "stage"))
    if network.pitch_channels:
        stage.model.source.estimator.load_state_dict(load_trained(work / "pitch"))
    # Convolutions of few channels are no faster in bfloat16 on CPUs, and phases need the precision.
    run = RunConfig(
        output=str(work / "vocoder"), minutes=110, learning_rate=4e-4, final_learning_rate=5e-5, precision="float32",
        weight_decay=0.0, clip_norm=100.0, betas=(0.8, 0.99), log_every=50,
    )  # fmt: skip
    return stage, run
