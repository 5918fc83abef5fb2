"""Which tensor of a file fills which parameter of a module: every key is consumed, dropped by name, or an error."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from indextts2.checkpoints.weight_norm import SUFFIXES, magnitude_shape
from indextts2.errors import CheckpointError

Shape = tuple[int, ...]
COUNTER = "num_batches_tracked"
NAMES_SHOWN = 8


@dataclass(frozen=True)
class KeyPlan:
    """`sources` gives for each parameter its one key, or its (magnitude, direction) keys to be folded."""

    sources: dict[str, tuple[str, ...]]
    dropped: tuple[str, ...]


def plan_keys(module: nn.Module, shapes: Mapping[str, Shape], file: str) -> KeyPlan:
    """Match the keys of one module in a file with the parameters and buffers of `module`; reads no values.

    Args:
        module: may be on the meta device. Its `UNUSED_KEYS` are patterns of keys that it leaves out (both halves of a
            weight norm count as `weight`).
        shapes: key -> shape of everything that the file holds for this module, prefixes of the file stripped.
        file: named in errors.

    Raises:
        CheckpointError: a key is unknown, a parameter has no key, or a shape differs; all of a kind are named at once.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict(keep_vars=True).items()}
    sources, problems = _match(wanted, shapes, file)
    used = {key for keys in sources.values() for key in keys}
    patterns = [re.compile(pattern) for pattern in getattr(module, "UNUSED_KEYS", ())]
    computed = _computed_buffers(module)
    rest = [key for key in shapes if key not in used]
    dropped = [k for k in rest if _is_computed(k, computed) or any(p.fullmatch(plain_name(k)) for p in patterns)]
    unknown = [key for key in rest if key not in set(dropped)]
    problems += _listed("unknown keys", unknown, shapes)
    missing = [name for name in wanted if name not in sources and name.rpartition(".")[2] != COUNTER]
    problems += _listed("missing keys", missing, wanted)
    if problems:
        raise CheckpointError(f"{file} does not fit {type(module).__name__}: " + "; ".join(problems))
    return KeyPlan(sources, tuple(dropped))


def _match(
    wanted: Mapping[str, Shape], shapes: Mapping[str, Shape], file: str
) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Sources of every parameter that has some, and what is wrong with their shapes."""
    sources: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    for name, shape in wanted.items():
        candidates = _candidates(name, shape, shapes)
        if len(candidates) > 1:
            problems.append(f"{name} is given twice, as {' and as '.join('+'.join(c) for c in candidates)}")
        for expected in candidates[:1]:
            sources[name] = tuple(expected)
            problems += [
                f"{key} has shape {list(shapes[key])} instead of {list(size)}"
                for key, size in expected.items()
                if shapes[key] != size
            ]
    return sources, problems


def _candidates(name: str, shape: Shape, shapes: Mapping[str, Shape]) -> list[dict[str, Shape]]:
    """The ways in which the file may hold a parameter: plain, or as magnitude and direction."""
    ways = [{name: shape}]
    if name == "weight" or name.endswith(".weight"):
        stem = name[: -len("weight")]
        ways += [{stem + g: magnitude_shape(shape), stem + v: shape} for g, v in SUFFIXES if shape]
    return [way for way in ways if all(key in shapes for key in way)]


def plain_name(key: str) -> str:
    """The parameter that a key is about: that of its weight norm for a magnitude or direction."""
    for suffix in itertools.chain.from_iterable(SUFFIXES):
        if key.endswith(f".{suffix}"):
            return key.removesuffix(suffix) + "weight"
    return key


def _computed_buffers(module: nn.Module) -> frozenset[str]:
    """Names of the buffers that the constructor computes; a file may carry them or not."""
    return frozenset(name for name, _ in module.named_buffers(remove_duplicate=False)) - frozenset(module.state_dict())


def _is_computed(key: str, computed: frozenset[str]) -> bool:
    return key in computed or key.rpartition(".")[2] == COUNTER


def _listed(what: str, names: list[str], shapes: Mapping[str, Shape]) -> list[str]:
    if not names:
        return []
    shown = ", ".join(f"{name} {list(shapes[name])}" for name in names[:NAMES_SHOWN])
    more = f" and {len(names) - NAMES_SHOWN} more" if len(names) > NAMES_SHOWN else ""
    return [f"{len(names)} {what}: {shown}{more}"]
