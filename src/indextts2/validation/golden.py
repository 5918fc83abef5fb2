"""A golden set: arrays of one real run with all that is needed to replay it, in a folder.

manifest.json                       format, text, options, seed, model, one entry per array
input/       text.txt tokens.npy speaker_audio.npy [emotion_audio.npy] reference_mel.npy flow_noise.npy
encoders/    speaker_emb.npy semantic_feat.npy semantic_codes.npy emotion_feat.npy
gpt/         speaker_latents.npy emotion_vector.npy mel_codes.npy layer_NN.npy latents.npy
synthesis/   length_reg.npy dit_step_NN.npy mel_spec.npy
output/      audio.npy audio.wav
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from indextts2.errors import ValidationError

FORMAT = "indextts2-golden"
FORMAT_VERSION = 1
MANIFEST = "manifest.json"


@dataclass
class GoldenSet:
    """Arrays by name (`gpt/mel_codes`) and the facts of the run that made them."""

    facts: dict[str, Any]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    @property
    def is_mock(self) -> bool:
        """Whether the set was made without a model."""
        return bool(self.facts.get("mock"))

    def write(self, folder: Path) -> Path:
        """Write the set into `folder` (made if absent); the manifest comes last, so a torn write is no set."""
        for name, array in self.arrays.items():
            path = folder / f"{name}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, array)
        (folder / "input").mkdir(parents=True, exist_ok=True)
        (folder / "input" / "text.txt").write_text(self.facts["text"], encoding="utf-8")
        entries = {name: {"shape": list(a.shape), "dtype": str(a.dtype)} for name, a in self.arrays.items()}
        manifest = {"format": FORMAT, "format_version": FORMAT_VERSION, **self.facts, "arrays": entries}
        (folder / MANIFEST).write_text(json.dumps(manifest, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def read(cls, folder: Path) -> GoldenSet:
        """Read the manifest of `folder`; arrays are read when they are asked for by `load`.

        Raises:
            ValidationError: the folder holds no golden set of this version.
        """
        path = folder / MANIFEST
        try:
            facts = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValidationError(f"{folder} holds no golden set: cannot read {path}: {error.strerror}") from error
        except ValueError as error:
            raise ValidationError(f"{path} is not valid JSON: {error}") from error
        if facts.get("format") != FORMAT or facts.get("format_version") != FORMAT_VERSION:
            raise ValidationError(f"{path} is not of format {FORMAT} version {FORMAT_VERSION}; dump it again")
        return cls({**facts, "folder": str(folder)})

    def load(self, name: str) -> np.ndarray:
        """One array, checked against the manifest.

        Raises:
            ValidationError: the file is missing, unreadable, or has another shape or type than the manifest says.
        """
        if name in self.arrays:
            return self.arrays[name]
        path = Path(self.facts["folder"]) / f"{name}.npy"
        try:
            array: np.ndarray = np.load(path, allow_pickle=False)
        except OSError as error:
            raise ValidationError(f"{path} is missing or unreadable: {error.strerror}") from error
        except (ValueError, EOFError) as error:
            raise ValidationError(f"{path} is no array file: {error}") from error
        entry = self.facts["arrays"].get(name)
        if entry is None or entry["shape"] != list(array.shape) or entry["dtype"] != str(array.dtype):
            raise ValidationError(f"{path} holds {array.dtype} {list(array.shape)}, the manifest says {entry}")
        self.arrays[name] = array
        return array


@dataclass(frozen=True)
class Comparison:
    """One array: recomputed against golden. `reason` is empty when it passed."""

    component: str
    name: str
    shape: tuple[int, ...]
    max_difference: float
    mean_difference: float
    reason: str

    @property
    def passed(self) -> bool:
        """Whether the arrays agree."""
        return not self.reason


def compare(component: str, name: str, actual: np.ndarray, golden: np.ndarray, atol: float, rtol: float) -> Comparison:
    """Integers must be equal; floats within `atol + rtol * |golden|` everywhere. NaN and another shape fail."""
    nan = float("nan")
    if actual.shape != golden.shape:
        return Comparison(component, name, actual.shape, nan, nan, f"shape {actual.shape}, golden {golden.shape}")
    if golden.size == 0:
        return Comparison(component, name, actual.shape, nan, nan, "the golden array is empty")
    a, g = actual.astype(np.float64), golden.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(g).all()):
        return Comparison(component, name, actual.shape, nan, nan, "NaN or infinity")
    difference = np.abs(a - g)
    exact = np.issubdtype(golden.dtype, np.integer)
    outside = int((difference > (0 if exact else atol + rtol * np.abs(g))).sum())
    reason = f"{outside} of {golden.size} values outside the tolerance" if outside else ""
    return Comparison(component, name, actual.shape, float(difference.max()), float(difference.mean()), reason)


def verdict(components: list[str], comparisons: list[Comparison]) -> tuple[bool, list[str]]:
    """Whether every component compared at least one array and all passed, with the reasons against."""
    reasons = [f"{c.component}: {c.name}: {c.reason}" for c in comparisons if not c.passed]
    compared = {c.component for c in comparisons}
    reasons += [f"{name}: nothing was compared" for name in components if name not in compared]
    return not reasons, reasons
