"""The corpus of the training stages: manifest -> flat arrays on disk, and batches of similar length.

`prepare_corpus` decodes every clip once and writes one flat array per kind of data with an index of offsets:

| file | contents | per clip |
|---|---|---|
| ``audio_22k.npy`` | int16 samples at 22050 Hz | (N,) |
| ``audio_16k.npy`` | int16 samples at 16000 Hz | (N',) |
| ``mel.npy`` | float16 log-mel of the acoustic stages | (N // 256, 80) |
| ``fbank.npy`` | float16 input of the semantic encoder | (T, 160), 50 Hz |

Clips of held-out speakers are in the same files but never in `Corpus.train`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from indextts2.config import MelConfig
from indextts2.errors import ConfigError
from indextts2.text.phonemes import phoneme_ids

log = logging.getLogger(__name__)

MEL_RATE_HZ, ENCODER_RATE_HZ = 22050, 16000
KINDS = ("audio_22k", "audio_16k", "mel", "fbank")
# What a speech recogniser heard (`indextts2.training.listening`); clips with more wrong words than this are left out.
HEARD_FILE, LARGEST_WORD_ERROR = "heard.jsonl", 0.34
# Folders inside of a prepared corpus with copies of its clips: other speakers, other voices, other moods.
SHIFTED, REVOICED, AROUSED = "shifted", "revoiced", "aroused"
# Never trained on: two plain voices and six mixed ones of the corpus.
HELD_OUT_SPEAKERS = (
    "k_af_river", "k_bm_lewis", "k_f0051", "k_f0151", "k_f0251", "k_m0050", "k_m0150", "k_m0250",
)  # fmt: skip


@dataclass(frozen=True)
class Clip:
    """One line of the index. `spans` gives (start, end) rows in the flat array of each kind."""

    path: str
    text: str
    phonemes: str
    speaker: str
    seconds: float
    spans: dict[str, tuple[int, int]]

    @property
    def is_held_out(self) -> bool:
        return self.speaker in HELD_OUT_SPEAKERS

    def length(self, kind: str) -> int:
        """Rows of this clip in the array `kind`."""
        start, end = self.spans[kind]
        return end - start


class Corpus:
    """A prepared corpus, memory-mapped. Index it by clip number; `train` and `held_out` are lists of clip numbers."""

    def __init__(self, folder: Path) -> None:
        index = folder / "index.jsonl"
        if not index.exists():
            raise ConfigError(f"{folder} holds no prepared corpus (index.jsonl); run the data preparation first")
        self.folder = folder
        self.clips = [Clip(**json.loads(line)) for line in index.read_text(encoding="utf-8").splitlines()]
        self._arrays: dict[str, np.ndarray] = {}
        misread = misread_paths(folder)
        self.train = [i for i, clip in enumerate(self.clips) if not clip.is_held_out and clip.path not in misread]
        self.held_out = [i for i, clip in enumerate(self.clips) if clip.is_held_out]
        self.speakers = sorted({clip.speaker for clip in self.clips})
        self.by_speaker: dict[str, list[int]] = {speaker: [] for speaker in self.speakers}
        for number, clip in enumerate(self.clips):
            self.by_speaker[clip.speaker].append(number)

    def __len__(self) -> int:
        return len(self.clips)

    def array(self, kind: str) -> np.ndarray:
        """The whole flat array of one kind, memory-mapped; stages may add kinds of their own (``codes``, ...)."""
        if kind not in self._arrays:
            self._arrays[kind] = np.load(self.folder / f"{kind}.npy", mmap_mode="r")
        return self._arrays[kind]

    def get(self, kind: str, number: int, like: str | None = None) -> np.ndarray:
        """Rows of clip `number` in the array `kind`; `like` names the kind whose spans it shares."""
        start, end = self.clips[number].spans[like or kind]
        return self.array(kind)[start:end]

    def audio(self, number: int, rate_hz: int = MEL_RATE_HZ) -> np.ndarray:
        """float32 samples in [-1, 1] at 22050 or 16000 Hz."""
        kind = "audio_22k" if rate_hz == MEL_RATE_HZ else "audio_16k"
        return self.get(kind, number).astype(np.float32) / 32768.0

    def text_ids(self, number: int) -> list[int]:
        """Phoneme ids of the clip's text, without start and stop."""
        return phoneme_ids(self.clips[number].phonemes)

    def other_clip(self, number: int, rng: np.random.Generator) -> int:
        """Another clip of the same speaker (the clip itself when it is the only one)."""
        others = [other for other in self.by_speaker[self.clips[number].speaker] if other != number]
        return int(rng.choice(others)) if others else number


def misread_paths(folder: Path) -> set[str]:
    """Paths of the clips of a prepared corpus that were heard otherwise than they are written."""
    path = folder / HEARD_FILE
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return {row["path"] for row in rows if row["word_error"] > LARGEST_WORD_ERROR}


def copies(corpus: Corpus) -> dict[str, Corpus]:
    """The copies of `corpus` that have been written, by the names of their folders."""
    folders = {name: corpus.folder / name for name in (SHIFTED, REVOICED, AROUSED)}
    return {name: Corpus(folder) for name, folder in folders.items() if (folder / "index.jsonl").exists()}


def read_manifest(corpus: Path) -> list[dict[str, Any]]:
    """Lines of ``manifest.jsonl``: path, text, phonemes, speaker, seconds and more."""
    manifest = corpus / "manifest.jsonl"
    if not manifest.exists():
        raise ConfigError(f"{corpus} holds no manifest.jsonl with one clip per line")
    return [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines() if line.strip()]


def _decode(path: Path) -> dict[str, np.ndarray]:
    """int16 samples of one clip at both rates."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    rates = {"audio_22k": MEL_RATE_HZ, "audio_16k": ENCODER_RATE_HZ}
    resampled = {kind: soxr.resample(mono, rate, target, quality="HQ") for kind, target in rates.items()}
    return {kind: to_int16(x) for kind, x in resampled.items()}


def to_int16(samples: np.ndarray) -> np.ndarray:
    """Samples in [-1, 1] as integers."""
    return (np.clip(samples, -1, 1) * 32767).round().astype(np.int16)


def clip_features(audio_22k: np.ndarray, audio_16k: np.ndarray, mel_config: MelConfig) -> dict[str, np.ndarray]:
    """float16 log-mel (frames, 80) and encoder input (T, 160) of one clip given as float32 samples."""
    from indextts2.audio.features import log_mel, seamless_features

    mel = log_mel(audio_22k, mel_config).reshape(mel_config.n_mels, -1).T
    fbank, _ = seamless_features(audio_16k)
    return {"mel": mel.astype(np.float16), "fbank": fbank.reshape(-1, fbank.shape[-1]).astype(np.float16)}


def prepare_corpus(corpus: Path, folder: Path, progress: Callable[[list[Any]], Iterable[Any]] | None = None) -> int:
    """Write the flat arrays and ``index.jsonl`` of `corpus` into `folder`; returns the number of clips.

    `progress` wraps the list of manifest lines (for example tqdm). Existing files are replaced only at the end.
    """
    lines = read_manifest(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    rows = dict.fromkeys(KINDS, 0)
    clips = []
    for line in progress(lines) if progress else lines:
        arrays = _decode(corpus / line["path"])
        audio = {kind: x.astype(np.float32) / 32768 for kind, x in arrays.items()}
        arrays |= clip_features(audio["audio_22k"], audio["audio_16k"], MelConfig())
        spans = {kind: (rows[kind], rows[kind] + len(x)) for kind, x in arrays.items()}
        for kind, x in arrays.items():
            parts[kind].append(x)
            rows[kind] += len(x)
        names = ("path", "text", "phonemes", "speaker", "seconds")
        clips.append(Clip(**{name: line[name] for name in names}, spans=spans))
    for kind in KINDS:
        np.save(folder / f"{kind}.npy", np.concatenate(parts[kind]))
    index = "".join(json.dumps(asdict(clip), ensure_ascii=False) + "\n" for clip in clips)
    (folder / "index.jsonl").write_text(index, encoding="utf-8")
    log.info("%d clips, %.2f hours in %s", len(clips), sum(clip.seconds for clip in clips) / 3600, folder)
    return len(clips)


class LengthBatches:
    """Endless batches of items of similar length, in an order fixed by the seed; resumable at any batch.

    Every epoch shuffles the items, sorts chunks of them by length and cuts batches whose padded size
    (items * longest) stays within `max_rows`.
    """

    def __init__(self, lengths: dict[int, int], max_rows: int, seed: int, chunk: int = 512) -> None:
        self.lengths, self.max_rows, self.seed, self.chunk = lengths, max_rows, seed, chunk
        self.epoch, self.position = 0, 0
        self._batches = self._epoch_batches()

    def _epoch_batches(self) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        order = rng.permutation(sorted(self.lengths)).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(order), self.chunk):
            chunk = sorted(order[start : start + self.chunk], key=lambda item: self.lengths[item])
            batches += self._cut(chunk)
        return [batches[i] for i in rng.permutation(len(batches))]

    def _cut(self, items: list[int]) -> list[list[int]]:
        batches: list[list[int]] = [[]]
        for item in items:
            if batches[-1] and (len(batches[-1]) + 1) * self.lengths[item] > self.max_rows:
                batches.append([])
            batches[-1].append(item)
        return batches

    def next(self) -> list[int]:
        """The item numbers of the next batch."""
        if self.position == len(self._batches):
            self.epoch, self.position = self.epoch + 1, 0
            self._batches = self._epoch_batches()
        self.position += 1
        return self._batches[self.position - 1]

    def state(self) -> dict[str, int]:
        return {"epoch": self.epoch, "position": self.position}

    def load_state(self, state: dict[str, int]) -> None:
        self.epoch = state["epoch"]
        self._batches = self._epoch_batches()
        self.position = state["position"]


def pad(rows: Sequence[np.ndarray], value: float = 0.0) -> np.ndarray:
    """Stack arrays of different first axis into (B, longest, ...), filled with `value`."""
    longest = max(len(row) for row in rows)
    result = np.full((len(rows), longest, *rows[0].shape[1:]), value, dtype=rows[0].dtype)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result
