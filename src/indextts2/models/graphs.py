"""CUDA graphs: a function on static buffers is recorded once and launched as a whole from then on.

A step of hundreds of small kernels takes as long as the processor needs to launch them; a graph is one launch. What is
recorded must neither wait for the device nor depend on values on it, must read and write tensors that stay where they
are, and must have fixed shapes: so callers pad to buckets and keep one graph per bucket.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch

WARM_UP_RUNS = 3
"""Before recording: libraries choose their algorithms and make their workspaces, kernels are compiled."""

MOST_GRAPHS = 256
"""That are kept: some options of a request are part of what is recorded, and there is no end of those."""


def bucket(count: int, smallest: int) -> int:
    """The first of `smallest`, twice, four times, ... that holds `count`."""
    size = smallest
    while size < count:
        size *= 2
    return size


class Graphs:
    """Graphs by key. On devices other than CUDA the functions simply run, so that all of this can be tested there.

    The graphs share one pool for what lives within a run, so two of them must never run at a time: callers hold a lock
    and use the same stream. Results that outlive a run belong into buffers made outside. When there are `MOST_GRAPHS`,
    the one that was not used for longest makes room.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graphs: OrderedDict[Hashable, torch.cuda.CUDAGraph] = OrderedDict()
        self._pool: Any = None

    def run(self, key: Hashable, function: Callable[[], None]) -> None:
        """Launch the graph of `key`, which is `prepare`d; without CUDA call `function`."""
        if self._device.type == "cuda":
            self._graphs.move_to_end(key)
            self._graphs[key].replay()
        else:
            function()

    def prepare(self, key: Hashable, function: Callable[[], None]) -> None:
        """Record `function` unless there is a graph for `key`; it runs a few times for that.

        On other devices than CUDA nothing happens.
        """
        if self._device.type != "cuda" or key in self._graphs:
            return
        if len(self._graphs) >= MOST_GRAPHS:
            torch.cuda.synchronize(self._device)  # it may be running
            self._graphs.popitem(last=False)
        self._graphs[key] = self._record(function)

    def clear(self) -> None:
        """Forget all graphs: the buffers or weights that they use are replaced."""
        if self._graphs:
            torch.cuda.synchronize(self._device)
        self._graphs.clear()
        self._pool = None

    def _record(self, function: Callable[[], None]) -> torch.cuda.CUDAGraph:
        with torch.cuda.device(self._device):
            here, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(here)
            with torch.cuda.stream(side):
                for _ in range(WARM_UP_RUNS):
                    function()
            here.wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
        self._pool = graph.pool()
        return graph
