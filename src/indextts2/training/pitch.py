"""Training stage of the pitch estimator: log-mel -> pitch, taught by probabilistic YIN.

The targets of a part of the corpus are computed once and kept in ``data/pitch.npz``. The vocoder's stage takes the
estimator as it is.
B batch, M mel bands, F frames.
Source of the targets: Mauch and Dixon 2014 (pYIN), as librosa has it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.audio.features import log_mel
from indextts2.config import BigVGANConfig, MelConfig, build
from indextts2.errors import ConfigError, MissingExtraError
from indextts2.models.vocoder.source import HIGHEST_HZ, LOWEST_HZ, PITCH_CLASSES, PitchEstimator, class_place
from indextts2.training.augment import shift_speaker
from indextts2.training.data import Corpus
from indextts2.training.embedded import embedded_model_config
from indextts2.training.prosody import PITCH_RANGE_HZ
from indextts2.training.runner import RunConfig, Stage

log = logging.getLogger(__name__)

TARGETS_FILE = "pitch.npz"
TRACKER_SAMPLES = 1024


class Contour(NamedTuple):
    """Pitch of the mel frames of one clip (F,): in Hz, carried on where there is none, and whether there is one."""

    hz: np.ndarray
    voiced: np.ndarray


@dataclass(frozen=True)
class PitchStageConfig:
    """Targets, crops and weights of the losses."""

    # Every so many training clips get targets; of the held-out clips as well.
    clip_stride: int = 5
    crop_frames: int = 96
    batch_size: int = 32
    # Weight of a frame's pitch where there is none and the target is carried on from its neighbours.
    unvoiced_weight: float = 0.1
    # Standard deviation of a target in classes.
    spread: float = 1.0
    # Predicted mels are smoother and noisier than true ones.
    largest_noise: float = 0.5
    largest_level: float = 2.0
    # Part of the crops that is moved by factors of these logarithms: other voices, higher ones than the corpus has.
    shifted: float = 0.5
    shifts: tuple[float, float] = (-0.25, 0.6)


def track_pitch(samples: np.ndarray, frames: int, config: MelConfig) -> np.ndarray:
    """Pitch (frames,) in Hz of the mel frames of a clip (N,); 0 where there is none."""
    try:
        import librosa
    except ImportError as error:
        raise MissingExtraError("pitch", "evaluate") from error
    hop = config.hop_length
    low, high = PITCH_RANGE_HZ
    # Frame n of a mel is centred on the middle of the samples n * hop to (n + 1) * hop.
    padded = np.pad(samples, (TRACKER_SAMPLES - hop) // 2, mode="reflect")
    hz, voiced, _ = librosa.pyin(
        padded, fmin=low, fmax=high, sr=config.sample_rate, frame_length=TRACKER_SAMPLES, hop_length=hop,
        center=False, fill_na=None,
    )  # fmt: skip
    return np.where(voiced, hz, 0.0).astype(np.float32)[:frames]


def write_targets(corpus: Corpus, stride: int) -> None:
    """Track the pitch of every `stride`-th clip and write ``data/pitch.npz``."""
    from tqdm import tqdm

    clips = corpus.train[::stride] + corpus.held_out[::stride]
    contours = [
        track_pitch(corpus.audio(n), corpus.clips[n].length("mel"), MelConfig())
        for n in tqdm(clips, desc="tracking pitch", unit="clip")
    ]
    np.savez(corpus.folder / TARGETS_FILE, clips=np.array(clips), f0=np.concatenate(contours))


def read_targets(corpus: Corpus) -> dict[int, Contour]:
    """Contours of the clips in ``data/pitch.npz`` that have any pitch."""
    with np.load(corpus.folder / TARGETS_FILE) as file:
        clips, f0 = file["clips"].tolist(), file["f0"]
    ends = np.cumsum([corpus.clips[n].length("mel") for n in clips])
    if len(f0) != ends[-1]:
        raise ConfigError(f"{corpus.folder / TARGETS_FILE} belongs to another corpus; delete it")
    contours = dict(zip(clips, np.split(f0, ends[:-1]), strict=True))
    return {n: _carried_on(hz) for n, hz in contours.items() if (hz > 0).any()}


def _carried_on(hz: np.ndarray) -> Contour:
    """Fill frames without pitch (0) on straight lines, in logarithm, between those that have one."""
    voiced = hz > 0
    frames = np.arange(len(hz))
    filled = np.exp(np.interp(frames, frames[voiced], np.log(hz[voiced])))
    return Contour(filled.astype(np.float32), voiced)


class PitchStage(Stage):
    """The estimator on crops of clips with targets."""

    name = "pitch"

    def __init__(self, corpus: Corpus, network: BigVGANConfig, config: PitchStageConfig) -> None:
        self.corpus, self.config = corpus, config
        self.device = torch.device("cpu")
        self.model: PitchEstimator = PitchEstimator(network.num_mels, network.pitch_channels)
        if not (corpus.folder / TARGETS_FILE).exists():
            log.info("tracking the pitch of clips, once")
            write_targets(corpus, config.clip_stride)
        self.targets = read_targets(corpus)
        held_out = set(corpus.held_out)
        self.train = [
            n for n, contour in self.targets.items() if n not in held_out and len(contour.hz) >= config.crop_frames
        ]
        self.held_out = [n for n in self.targets if n in held_out]

    def next_batch(self, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Mels (B,M,F), pitch (B,F) in Hz and voicing (B,F) of random crops, with noise and at any level."""
        mels, hz, voiced = [], [], []
        for clip in rng.choice(self.train, self.config.batch_size):
            mel, contour = self._crop(int(clip), rng)
            noise = rng.uniform(0, self.config.largest_noise) * rng.standard_normal(mel.shape, dtype=np.float32)
            mels.append(mel + noise + np.float32(rng.uniform(-1, 1) * self.config.largest_level))
            hz.append(contour.hz)
            voiced.append(contour.voiced)
        stacked = (np.stack(mels), np.stack(hz), np.stack(voiced))
        mel_batch, hz_batch, voiced_batch = (torch.from_numpy(x.astype(np.float32)) for x in stacked)
        return mel_batch, hz_batch, voiced_batch

    def _crop(self, clip: int, rng: np.random.Generator) -> tuple[np.ndarray, Contour]:
        """Mel (M,F) and pitch of a random crop, for a part of them of another voice."""
        frames, hop, contour = self.config.crop_frames, MelConfig().hop_length, self.targets[clip]
        if rng.random() >= self.config.shifted:
            start = int(rng.integers(0, len(contour.hz) - frames + 1))
            crop = slice(start, start + frames)
            mel = self.corpus.get("mel", clip)[crop].T.astype(np.float32)
            return mel, Contour(contour.hz[crop], contour.voiced[crop])
        # The first and the last frame of a piece see what is not there.
        wanted = frames + 2
        factor = min(float(np.exp(rng.uniform(*self.config.shifts))), len(contour.hz) / (wanted + 1))
        length = math.ceil((wanted + 1) * factor)
        start = int(rng.integers(0, max(0, len(contour.hz) - length) + 1))
        samples = self.corpus.audio(clip)[start * hop : (start + length) * hop]
        mel = log_mel(shift_speaker(samples, factor, MelConfig().sample_rate), MelConfig())[:, 1 : frames + 1]
        # Middles of the frames of the other voice, in frames of the clip.
        place = (np.arange(1, frames + 1) + 0.5) * factor - 0.5 + start
        hz = np.exp(np.interp(place, np.arange(len(contour.hz)), np.log(contour.hz))) * factor
        nearest = place.round().astype(np.int64).clip(max=len(contour.hz) - 1)
        return mel, Contour(hz.clip(LOWEST_HZ, HIGHEST_HZ).astype(np.float32), contour.voiced[nearest])

    def losses(self, batch: tuple[Tensor, Tensor, Tensor], step: int) -> dict[str, Tensor]:
        mel, hz, voiced = (x.to(self.device) for x in batch)
        classes, voicing = self.model.scores(mel)
        place = torch.arange(PITCH_CLASSES, device=self.device)[:, None]
        target = (-0.5 * ((place - class_place(hz)[:, None]) / self.config.spread).square()).softmax(1)
        weight = voiced + self.config.unvoiced_weight * (1 - voiced)
        pitch = (weight * -(target * classes.float().log_softmax(1)).sum(1)).sum() / weight.sum()
        voicing_loss = F.binary_cross_entropy_with_logits(voicing.float(), voiced)
        return {"loss": pitch + voicing_loss, "pitch": pitch, "voicing": voicing_loss}

    def evaluate(self) -> dict[str, float]:
        """On held-out clips: wrong voicing, pitch off by more than a fifth of a tone, and the median error."""
        cents, wrong = [], []
        for clip in self.held_out:
            contour = self.targets[clip]
            mel = torch.from_numpy(self.corpus.get("mel", clip).T.astype(np.float32))[None].to(self.device)
            found = self.model(mel)
            voiced = found.voicing[0].cpu().numpy() > 0.5
            wrong.append(voiced != contour.voiced)
            ratio = found.hz[0].cpu().numpy() / contour.hz
            cents.append(1200 * np.abs(np.log2(ratio[contour.voiced])))
        errors = np.concatenate(cents)
        return {
            "voicing_error": float(np.concatenate(wrong).mean()),
            "gross_error": float((errors > 40).mean()), "median_cents": float(np.median(errors)),
        }  # fmt: skip


def make(work: Path, changes: Mapping[str, Any] | None = None) -> tuple[Stage, RunConfig]:
    """The stage on the prepared corpus in ``work/data`` with its default run."""
    network = embedded_model_config().bigvgan
    if network is None or not network.pitch_channels:
        raise ConfigError("the configuration of the embedded voice has no vocoder with a harmonic source")
    stage = PitchStage(Corpus(work / "data"), network, build(PitchStageConfig, changes or {}, "stage"))
    run = RunConfig(output=str(work / "pitch"), minutes=6, learning_rate=2e-3, precision="float32", log_every=50)
    return stage, run
