"""Excitation of a vocoder: the harmonics of the pitch that a mel has, and noise.

A generator of convolutions alone answers a steady mel with the same samples for every frame: it hums at the frame rate
where a voice should be. A source that runs on in time breaks that symmetry. The official vocoder is large enough to
do without and has none; the embedded voice has one.

Legend: B batch, M mel bands, F mel frames, U hop (samples per frame), T samples.

Sources: Wang et al. 2019 (neural source-filter models), Kim et al. 2018 (CREPE: pitch by classes).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOWEST_HZ, HIGHEST_HZ = 55.0, 550.0
PITCH_CLASSES = 96
# Classes on either side of the likeliest one that its pitch is averaged over.
NEIGHBOURS = 2
KERNEL, LAYERS = 5, 4
# Brings log-mels of speech to about zero mean and unit variance.
MEL_MEAN, MEL_SCALE = -5.0, 3.0
EXCITATION_CHANNELS = 3
# Period of the noise in samples; 3 s of it are heard as noise.
NOISE_SAMPLES = 1 << 16


class Pitch(NamedTuple):
    """Pitch per frame in Hz (B,F), also where there is none, and how voiced a frame is, 0 to 1 (B,F)."""

    hz: Tensor
    voicing: Tensor


class PitchEstimator(nn.Module):
    """Pitch of natural-log mels by classification over pitches that are spaced evenly in logarithm."""

    # Frames on either side that the pitch of a frame depends on.
    reach = LAYERS * (KERNEL // 2)

    def __init__(self, num_mels: int, channels: int) -> None:
        super().__init__()
        sizes = [num_mels, *(channels,) * LAYERS]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, after, KERNEL, padding=KERNEL // 2) for before, after in itertools.pairwise(sizes)
        )
        self.head = nn.Conv1d(channels, PITCH_CLASSES + 1, 1)

    def scores(self, mel: Tensor) -> tuple[Tensor, Tensor]:
        """Mel (B,M,F) -> scores of the pitch classes (B,PITCH_CLASSES,F) and of being voiced (B,F)."""
        x = (mel - MEL_MEAN) / MEL_SCALE
        for layer in self.layers:
            x = F.gelu(layer(x))
        scores = self.head(x)
        return scores[:, :-1], scores[:, -1]

    def forward(self, mel: Tensor) -> Pitch:
        """Mel (B,M,F) -> pitch of its frames, in float32."""
        classes, voiced = (scores.float() for scores in self.scores(mel))
        place = torch.arange(PITCH_CLASSES, device=mel.device, dtype=classes.dtype)[:, None]
        near = (place - classes.argmax(1, keepdim=True)).abs() <= NEIGHBOURS
        weight = classes.masked_fill(~near, -math.inf).softmax(1)
        return Pitch(class_hz((weight * place).sum(1)), voiced.sigmoid())


def class_hz(place: Tensor) -> Tensor:
    """Pitch in Hz at a place among the classes, 0 to PITCH_CLASSES - 1."""
    return LOWEST_HZ * (place * (math.log(HIGHEST_HZ / LOWEST_HZ) / (PITCH_CLASSES - 1))).exp()


def class_place(hz: Tensor) -> Tensor:
    """Inverse of `class_hz`."""
    return (hz / LOWEST_HZ).log() * ((PITCH_CLASSES - 1) / math.log(HIGHEST_HZ / LOWEST_HZ))


class HarmonicSource(nn.Module):
    """The excitation of a mel; the same samples whether asked for at once or in pieces."""

    noise: Tensor

    def __init__(self, num_mels: int, channels: int, hop_size: int, sample_rate_hz: int) -> None:
        super().__init__()
        self.hop_size, self.sample_rate_hz = hop_size, sample_rate_hz
        self.estimator = PitchEstimator(num_mels, channels)
        noise = np.random.Generator(np.random.PCG64(0)).standard_normal(NOISE_SAMPLES, dtype=np.float32)
        self.register_buffer("noise", torch.from_numpy(noise), persistent=False)

    def forward(self, mel: Tensor, first: int, stop: int) -> Tensor:
        """Excitation (B,3,U*(stop-first)) of the frames `first` to `stop` of a mel (B,M,F)."""
        return self.excitation(self.estimator(mel), first, stop).to(mel.dtype)

    def excitation(self, pitch: Pitch, first: int, stop: int) -> Tensor:
        """Pulses with all harmonics, their fundamental, noise: (B,3,U*(stop-first)), each of about unit power.

        Pitch and voicing run linearly from frame boundary to frame boundary, where they are the mean of both frames;
        the phase counts from the start of frame 0.
        """
        hop, rate = self.hop_size, float(self.sample_rate_hz)
        hz, voicing = (_boundaries(x)[:, :, None] for x in pitch)
        # The sum of many frames needs the precision; a device may lack it.
        exact = hz.cpu().double()
        cycles = (exact[:, :-1] + exact[:, 1:]) * (hop / 2 / rate)
        turns = (cycles.cumsum(1) - cycles).remainder(1.0).to(hz)[:, first:stop]
        here, there = slice(first, stop), slice(first + 1, stop + 1)
        within = torch.arange(hop, device=hz.device, dtype=hz.dtype) / hop
        slope = hz[:, there] - hz[:, here]
        current = hz[:, here] + slope * within
        phase = (turns + (hz[:, here] + 0.5 * slope * within) * within * (hop / rate)).remainder(1.0)
        strength = voicing[:, here] + (voicing[:, there] - voicing[:, here]) * within
        pulses = strength * harmonics(phase, rate / 2 / current)
        fundamental = strength * (2 * math.pi * phase).sin() * math.sqrt(2)
        index = torch.arange(first * hop, stop * hop, device=hz.device) % NOISE_SAMPLES
        noise = self.noise[index].expand(hz.shape[0], -1)
        return torch.stack((pulses.flatten(1), fundamental.flatten(1), noise), dim=1)


def _boundaries(x: Tensor) -> Tensor:
    """Values at the F + 1 boundaries of frames (B,F) with one value each."""
    padded = torch.cat((x[:, :1], x, x[:, -1:]), dim=1)
    return (padded[:, :-1] + padded[:, 1:]) / 2


def harmonics(phase: Tensor, count: Tensor) -> Tensor:
    """Sum of the cosines of the first `count` harmonics, the last one in part, over the root of half their number.

    Args:
        phase: of the fundamental in turns, 0 to 1.
        count: number of harmonics, at least 1; it may be a fraction, so that harmonics come and go softly.
    """
    whole = count.floor()
    half = math.pi * phase
    sine = half.sin()
    # Dirichlet's kernel; its limit where the sine vanishes.
    at_pulse = sine.abs() < 1e-4
    closed = ((2 * whole + 1) * half).sin() / (2 * sine.masked_fill(at_pulse, 1.0)) - 0.5
    total = torch.where(at_pulse, whole, closed) + (count - whole) * ((whole + 1) * 2 * half).cos()
    return total / (count / 2).sqrt()
