"""Key-value cache of one request: the prefix once, then one row per step and beam.

H heads, K head width, R rows held (prefix, start token, and B rows per decoding step), B beams.

Beams never copy keys or values. All rows of all beams lie in one buffer, and a table says which rows a beam
descends from; when beams are reordered only the table is. Every step then is one attention of B queries over one
set of keys, which also reads the rows that beams share once instead of B times. Rows from which no living beam
descends are squeezed out now and then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

GROWTH_ROWS = 256
"""The buffers grow by at least this many rows, and by half of what they hold."""
DEAD_ROWS = 96
"""So many rows of dead beams are carried along before they are squeezed out."""


class KVCache:
    """Keys and values of every layer for one request."""

    def __init__(self, keys: list[Tensor], values: list[Tensor], length: int) -> None:
        self.keys = keys
        self.values = values
        self.length = length
        self._visible: Tensor | None = None  # (B, capacity) bool, None while there is one beam

    @classmethod
    def empty(cls, layers: int, heads: int, head_dim: int, capacity: int, like: Tensor) -> KVCache:
        """Room for `capacity` rows with the precision and device of `like`."""
        shape = (1, heads, capacity, head_dim)
        return cls([like.new_empty(shape) for _ in range(layers)], [like.new_empty(shape) for _ in range(layers)], 0)

    @property
    def capacity(self) -> int:
        return self.keys[0].shape[2]

    @property
    def dtype(self) -> torch.dtype:
        return self.keys[0].dtype

    def reserve(self, rows: int) -> None:
        """Make room for `rows` more rows."""
        needed = self.length + rows
        if needed <= self.capacity:
            return
        extra = max(needed - self.capacity, GROWTH_ROWS, self.capacity // 2)
        for buffers in (self.keys, self.values):
            for layer, old in enumerate(buffers):
                new = old.new_empty(1, old.shape[1], old.shape[2] + extra, old.shape[3])
                new[:, :, : self.length] = old[:, :, : self.length]
                buffers[layer] = new
        if self._visible is not None:
            self._visible = torch.nn.functional.pad(self._visible, (0, extra))

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store (1, H, n, K) rows of one layer behind the rows held; return all (1, H, R + n, K)."""
        end = self.length + keys.shape[2]
        all_keys, all_values = self.keys[layer][:, :, :end], self.values[layer][:, :, :end]
        all_keys[:, :, self.length :] = keys
        all_values[:, :, self.length :] = values
        return all_keys, all_values

    def advance(self, rows: int) -> None:
        """Count the rows that every layer has appended."""
        self.length += rows

    def truncate(self, length: int) -> None:
        """Forget all rows from `length` on, and all beams."""
        self.length = length
        self._visible = None

    def fork(self, length: int) -> KVCache:
        """A separate cache that starts with a copy of the first `length` rows."""
        keys = [k[:, :, :length].clone() for k in self.keys]
        values = [v[:, :, :length].clone() for v in self.values]
        return KVCache(keys, values, length)

    def branch(self, parents: Sequence[int]) -> Tensor | None:
        """Prepare one step: beam b continues beam `parents[b]` and will append row R + b.

        Returns:
            The additive mask (B, R + B) of rows that each beam attends to, or None for a single beam.
        """
        beams = len(parents)
        self.reserve(beams)
        if beams == 1:
            return None
        if self._visible is None:
            self._visible = torch.zeros(beams, self.capacity, dtype=torch.bool, device=self.keys[0].device)
            self._visible[:, : self.length] = True
        elif list(parents) != list(range(beams)):
            self._visible = self._visible[list(parents)]
        self._squeeze()
        end = self.length + beams
        self._visible[:, self.length : end] = torch.eye(beams, dtype=torch.bool, device=self._visible.device)
        mask = torch.zeros(beams, end, dtype=self.dtype, device=self._visible.device)
        return mask.masked_fill_(~self._visible[:, :end], float("-inf"))

    def _squeeze(self) -> None:
        """Drop the rows that no beam sees, once they are many; the order of the others stays."""
        assert self._visible is not None
        if self.length < DEAD_ROWS:
            return
        alive = self._visible[:, : self.length].any(dim=0)
        dead = self.length - int(alive.sum())
        if dead < DEAD_ROWS:
            return
        first = int(alive.logical_not().nonzero()[0])
        kept = alive[first:].nonzero().squeeze(1) + first
        end = first + len(kept)
        for buffer in (*self.keys, *self.values):
            buffer[:, :, first:end] = buffer[:, :, kept]
        self._visible[:, first:end] = self._visible[:, kept]
        self._visible[:, end:] = False
        self.length = end


@dataclass(frozen=True)
class Lane:
    """The rows of one request in a step: `rows` of them, appended to `cache`.

    `mask` (rows, R + rows), additive, says what each row attends to. None with `causal`: everything before it (only for
    an empty cache). None without: everything held (only for one row).
    """

    cache: KVCache
    rows: int
    mask: Tensor | None = None
    causal: bool = False
