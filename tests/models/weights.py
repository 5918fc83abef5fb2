"""Name-derived weights as our modules want them: weight norm folded, official prefixes removed."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def fold_weight_norm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Replace each pair `weight_g`, `weight_v` by the plain `weight` (norm over all axes but the first)."""
    folded = {key: value for key, value in state.items() if not key.endswith(("weight_g", "weight_v"))}
    for key, v in state.items():
        if key.endswith("weight_v"):
            norm = v.norm(dim=tuple(range(1, v.ndim)), keepdim=True)
            folded[key.removesuffix("_v")] = state[key.removesuffix("v") + "g"] * v / norm
    return folded


def unused(key: str, patterns: Iterable[str]) -> bool:
    return any(re.fullmatch(pattern, key) for pattern in patterns)


def load_strictly(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Load a folded official state dict; only keys that the class names as unused may be left over."""
    patterns = getattr(module, "UNUSED_KEYS", ())
    module.load_state_dict({key: value for key, value in fold_weight_norm(state).items() if not unused(key, patterns)})
    module.eval()


def assert_manifest_matches(module: nn.Module, entries: dict[str, list], prefix: str) -> None:
    """Every key of the manifest is ours with its shape, or named as unused; and none of ours is missing there."""
    patterns = getattr(module, "UNUSED_KEYS", ())
    shapes = {key.removeprefix(prefix): tuple(entry[0]) for key, entry in entries.items() if key.startswith(prefix)}
    meta = fold_weight_norm({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    expected = {key: tuple(value.shape) for key, value in meta.items() if not unused(key, patterns)}
    assert expected, f"the manifest holds no key that starts with {prefix}"
    assert {key: tuple(value.shape) for key, value in module.state_dict().items()} == expected
