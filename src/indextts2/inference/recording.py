"""What a GPU records before the first request: the CUDA graphs of usual sizes. All others are recorded when first used.

T frames of prompt and target, P of the prompt, M mel bands.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

import torch

from indextts2.inference.stages import flow_dtype, prompt_frames
from indextts2.models.s2mel.padded import FRAMES

if TYPE_CHECKING:
    from indextts2.checkpoints.loading import Models
    from indextts2.config import ResolvedConfig
    from indextts2.models.s2mel.padded import PaddedVelocity

log = logging.getLogger(__name__)

USUAL_SECONDS = 10.0
"""Of speech in one segment."""
USUAL_TEXT_TOKENS = 120
VOCODER_FRAMES = 64


@torch.inference_mode()
def record(models: Models, options: ResolvedConfig, requests: int, prompt: int | None) -> None:
    """Record decoding for up to `requests` requests together, and the flow for a reference of `prompt` mel frames.

    Only where the device works with graphs. The flow depends on the reference; None leaves it out.
    """
    bursts, padded = models.gpt.bursts, models.dit.padded
    if bursts is None or padded is None:
        return
    start = time.monotonic()
    mel = models.config.s2mel.mel
    frames = int(USUAL_SECONDS * mel.sample_rate / mel.hop_length)
    codes = min(options.generation.max_mel_tokens, int(frames / models.config.s2mel.frames_per_code))
    prefix = models.gpt.conditioning_rows + USUAL_TEXT_TOKENS + 3
    bursts.warm_up(options.generation, requests, prefix + options.generation.num_beams * codes)
    if prompt is not None:
        seen = prompt_frames(models, prompt, options.prompt_seconds)
        for total in range(seen + 1, seen + frames + FRAMES, FRAMES):
            _record_flow(models, padded, options, total, seen)
    # No graph, but its kernels are compiled or chosen when they first run.
    models.bigvgan(torch.zeros(1, mel.n_mels, VOCODER_FRAMES, device=models.device))
    log.info("recorded in %.1f s", time.monotonic() - start)


def _record_flow(models: Models, padded: PaddedVelocity, options: ResolvedConfig, frames: int, prompt: int) -> None:
    """Record the velocity at T = `frames` with P = `prompt`, with and without guidance as the options need it."""
    dit, config = models.dit, models.config.s2mel
    x = torch.zeros(1, frames, config.mel.n_mels, device=models.device)
    mu = x.new_zeros(1, frames, config.dit.content_dim)
    condition = dit.condition(x[:, :prompt], mu, x.new_zeros(1, config.style_dim))
    time_row, dtype = dit.time_tables(x.new_zeros(1)), flow_dtype(models, options.flow_dtype)
    if options.cfg_rate > 0 and options.guidance_until > 0:
        padded.velocity(torch.cat((x, x)), dit.with_null_branch(condition), time_row, prompt, dtype)
    if options.cfg_rate == 0 or options.guidance_until < 1:
        padded.velocity(x, condition, time_row, prompt, dtype)
