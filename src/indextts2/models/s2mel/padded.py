"""The velocity of the flow at padded lengths on a GPU, so that one CUDA graph serves all lengths of a bucket.

Legend: B batch, M mel bands, T frames, H width, as in `dit`.

An utterance is padded to a multiple of `FRAMES`, and what the network then computes is what it computes for a padded
item of a batch: attention does not see the padding, and the WaveNet mirrors at the true end.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.models.graphs import Graphs
from indextts2.models.s2mel.transformer import rotary_table

if TYPE_CHECKING:
    from indextts2.models.s2mel.dit import Condition, DiT, TimeTables

FRAMES = 128
"""Utterances are padded to a multiple of so many frames, and prompts count as a multiple of them."""


@dataclass
class Buffers:
    """What the velocity of one size is computed from, and the velocity; all stay where they are."""

    x: Tensor  # (B,T,M)
    condition: Condition
    time: TimeTables
    velocity: Tensor  # (B,T,M)


class PaddedVelocity:
    """`DiT.velocity` of inference, padded and recorded. Any thread may call it."""

    def __init__(self, dit: DiT) -> None:
        self._dit = dit
        self._buffers: dict[tuple[int, int, int], Buffers] = {}  # by items, frames, and rows of the time tables
        self._graphs = Graphs(dit.conv2.weight.device)
        self._lock = threading.Lock()

    @torch.inference_mode()
    def velocity(
        self,
        x: Tensor,
        condition: Condition,
        time: TimeTables,
        first_frame: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """As `DiT.velocity`, up to rounding."""
        batch, frames, _ = x.shape
        if frames - max(0, first_frame - self._dit.wavenet.reach) <= self._dit.wavenet.reach:
            return self._dit.velocity(x, condition, time, first_frame, dtype)  # too short to be mirrored
        size, first = frames + -frames % FRAMES, first_frame // FRAMES * FRAMES
        key = (batch, size, len(time.norms))
        with self._lock:
            buffers = self._buffers.get(key) or self._make_buffers(x, condition, time, size)
            self._buffers[key] = buffers
            _fill(buffers, x, condition, time)
            step = functools.partial(self._compute, buffers, first, dtype)
            self._graphs.prepare((*key, first, dtype), step)
            self._graphs.run((*key, first, dtype), step)
            return buffers.velocity[:, first_frame:frames].clone()

    def _compute(self, buffers: Buffers, first: int, dtype: torch.dtype) -> None:
        velocity = self._dit.velocity(buffers.x, buffers.condition, buffers.time, first, dtype)
        buffers.velocity[:, first:] = velocity

    @staticmethod
    def _make_buffers(x: Tensor, condition: Condition, time: TimeTables, size: int) -> Buffers:
        padded, constant = (x.new_zeros(len(x), size, part.shape[-1]) for part in (x, condition.constant))
        lengths = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        rotary = rotary_table(size, 2 * condition.rotary.cosine.shape[-1], constant)
        key_mask = torch.zeros((len(x), 1, 1, size), dtype=torch.bool, device=x.device)
        return Buffers(
            x=padded,
            condition=dataclasses.replace(
                condition, constant=constant, rotary=rotary, lengths=lengths, key_mask=key_mask
            ),
            time=type(time)(*(torch.empty_like(table) for table in time)),
            velocity=torch.zeros_like(padded),
        )


def _fill(buffers: Buffers, x: Tensor, condition: Condition, time: TimeTables) -> None:
    held, frames = buffers.condition, x.shape[1]
    assert held.lengths is not None and held.key_mask is not None
    padding = (0, 0, 0, buffers.x.shape[1] - frames)
    # Zeros: a mask does not hide NaN that damaged inputs may have left.
    buffers.x.copy_(F.pad(x, padding))
    held.constant.copy_(F.pad(condition.constant, padding))
    if condition.lengths is None:
        held.lengths.fill_(frames)
    else:
        held.lengths.copy_(condition.lengths)
    index = torch.arange(buffers.x.shape[1], device=x.device)
    held.key_mask.copy_((index < held.lengths[:, None])[:, None, None])
    for table, row in zip(buffers.time, time, strict=True):
        table.copy_(row)
