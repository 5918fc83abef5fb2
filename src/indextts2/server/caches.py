"""Bounds for what the libraries below torch keep for every length of speech that they have seen."""

from __future__ import annotations

import os

# oneDNN makes some fifty primitives for each new length of speech and keeps 1024; torch's layer above it keeps as many
# of its own, with their buffers. Together that is half a gigabyte. These are enough for some requests at a time.
ENTRIES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": 256, "LRU_CACHE_CAPACITY": 64}


def bound_caches() -> None:
    """Set the bounds, unless the environment does; to be called before torch computes anything."""
    for name, entries in ENTRIES.items():
        os.environ.setdefault(name, str(entries))
