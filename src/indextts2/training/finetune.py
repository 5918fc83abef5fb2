"""Stage `finetune`: adapt the GPT of any model, the full-size one included, to new speakers by low-rank adapters.

The manifest is a JSON Lines file with `path` (relative to it), `text` and `speaker`. Audio is encoded by the model's
own networks; only the adapters are trained. Axes: B batch, L text tokens, M codes, T condition frames.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.audio.loader import load_reference
from indextts2.audio.resampler import speaker_audio
from indextts2.checkpoints.adapters import Adapter
from indextts2.config import InferenceConfig
from indextts2.errors import ConfigError
from indextts2.inference import stages
from indextts2.inference.pipeline import IndexTTS2
from indextts2.models.gpt.lora import add_adapters
from indextts2.models.gpt.unified_voice import IGNORED_TARGET, training_targets
from indextts2.training.data import LengthBatches, pad
from indextts2.training.runner import RunConfig, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

HELD_OUT_EVERY = 20
ADAPTER_FILE = "adapter.safetensors"


@dataclass(frozen=True)
class FinetuneConfig:
    """Size of the adapters and of the batches. The change of a weight is scaled by `alpha / rank`."""

    rank: int = 8
    alpha: float = 16.0
    rows_per_batch: int = 1200

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ConfigError(f"an adapter needs a rank of at least 1 and an alpha above 0, not {self}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True)
class Example:
    """One clip as the GPT sees it: ids (L,), codes (M,), semantic features (T, C)."""

    speaker: str
    ids: np.ndarray
    codes: np.ndarray
    features: np.ndarray


def read_manifest(path: Path) -> list[dict[str, Any]]:
    """Rows with `path`, `text` and `speaker`.

    Raises:
        ConfigError: the file cannot be read, a line is no JSON object, or a field is missing.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot read the manifest {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows.append({name: str(row[name]) for name in ("path", "text", "speaker")})
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}, line {number}: needs path, text and speaker as JSON ({error!r})") from error
    if not rows:
        raise ConfigError(f"the manifest {path} is empty")
    return rows


@torch.no_grad()
def encode(tts: IndexTTS2, manifest: Path, progress: Callable[[Iterable[Any]], Iterable[Any]]) -> list[Example]:
    """Read and encode every clip of the manifest with the networks of the model.

    Raises:
        ConfigError: a text makes more than one segment, or text and codes do not fit the model.
        AudioError, TextError: a clip or its text cannot be used.
    """
    models, examples = tts.models, []
    for row in progress(read_manifest(manifest)):
        _, audio_16k = speaker_audio(load_reference(manifest.parent / row["path"]), tts.sample_rate)
        features = stages.semantic_features(models, audio_16k)
        codes, _ = models.codec.quantize(features)
        segments = tts.text_segments(row["text"], InferenceConfig())
        if len(segments) != 1:
            raise ConfigError(f"{row['path']}: the text makes {len(segments)} segments; cut the clip into sentences")
        arrays = (segments[0].ids.numpy(), codes[0].cpu().numpy(), features[0].float().cpu().numpy())
        examples.append(Example(row["speaker"], *arrays))
    return examples


class FinetuneStage(Stage):
    """Teacher-forced training of adapters; `model` holds nothing else."""

    name = "finetune"

    def __init__(self, tts: IndexTTS2, examples: list[Example], config: FinetuneConfig) -> None:
        self.tts, self.examples, self.config = tts, examples, config
        self.voice = tts.models.gpt
        self.adapters = add_adapters(self.voice.gpt, config.rank, config.scale)
        self.model = self.adapters
        everyone = range(len(examples))
        self.held_out = [n for n in everyone if n % HELD_OUT_EVERY == 0] if len(examples) >= 2 * HELD_OUT_EVERY else []
        self.train = [n for n in everyone if n not in self.held_out]
        self.clips: dict[str, list[int]] = defaultdict(list)
        for number in self.train:
            self.clips[examples[number].speaker].append(number)
        lengths = {n: len(examples[n].ids) + len(examples[n].codes) for n in self.train}
        self.batches = LengthBatches(lengths, config.rows_per_batch, seed=1)

    def _condition(self, number: int, rng: np.random.Generator | None) -> np.ndarray:
        """Features of another clip of the speaker, of the clip itself where there is no other."""
        others = [n for n in self.clips[self.examples[number].speaker] if n != number] or [number]
        return self.examples[others[0] if rng is None else int(rng.choice(others))].features

    def collate(self, numbers: list[int], rng: np.random.Generator | None) -> dict[str, Tensor]:
        """Padded tensors of the examples; without `rng` the choice of conditions is fixed."""
        items = [self.examples[n] for n in numbers]
        conditions = [self._condition(n, rng) for n in numbers]
        arrays = {
            "ids": pad([item.ids for item in items]),
            "id_lengths": np.array([len(item.ids) for item in items]),
            "codes": pad([item.codes for item in items]),
            "code_lengths": np.array([len(item.codes) for item in items]),
            "condition": pad(conditions),
            "condition_lengths": np.array([len(c) for c in conditions]),
        }
        return {name: torch.from_numpy(array).to(self.device) for name, array in arrays.items()}

    def next_batch(self, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.collate(self.batches.next(), rng)

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        voice = self.voice
        with torch.no_grad():
            condition = batch["condition"], batch["condition_lengths"]
            conditioning = voice.conditioning(voice.speaker_latents(*condition), voice.emotion_vector(*condition))
        text, codes = (batch["ids"], batch["id_lengths"]), (batch["codes"], batch["code_lengths"])
        _, logits, _ = voice.training_forward(conditioning, *text, *codes)
        targets = training_targets(*codes, voice.config.stop_mel_token)
        loss = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED_TARGET)
        return {"loss": loss}

    def evaluate(self) -> dict[str, float]:
        """Mean loss over the held-out clips (every twentieth), or over all where there are few."""
        chosen = self.held_out or self.train
        total = sum(float(self.losses(self.collate([n], None), 0)["loss"]) for n in chosen)
        return {"held_out_loss" if self.held_out else "training_loss": total / len(chosen)}

    def adapter(self) -> Adapter:
        """The adapters as they stand, to be saved."""
        tensors = {
            f"{name.replace('/', '.')}.{part}": getattr(module, part).detach().clone()
            for name, module in self.adapters.items()
            for part in ("a", "b")
        }
        return Adapter(tensors, self.config.scale, self.tts.models.fingerprint)

    def state(self) -> dict[str, Any]:
        return self.batches.state()

    def load_state(self, state: dict[str, Any]) -> None:
        self.batches.load_state(state)


def default_run(work: Path) -> RunConfig:
    """Options of a run of this stage."""
    return RunConfig(output=str(work / "finetune"), minutes=30, learning_rate=1e-4, warmup_steps=20, weight_decay=0.0)
