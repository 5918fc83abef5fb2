"""Where things that can be made again are kept between runs."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def default_cache_dir() -> Path:
    """The user's cache directory for this package; INDEXTTS2_CACHE overrides the platform's convention."""
    override = os.environ.get("INDEXTTS2_CACHE")
    if override:
        return Path(override).expanduser()
    system = platform.system()
    if system == "Darwin":
        return Path.home() / "Library" / "Caches" / "indextts2"
    if system == "Windows" and os.environ.get("LOCALAPPDATA"):
        return Path(os.environ["LOCALAPPDATA"]) / "indextts2" / "Cache"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "indextts2"
