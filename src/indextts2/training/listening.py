"""Filter of the corpus: clips that a speech recogniser reads otherwise than they are written are not trained on.

``data/heard.jsonl`` has one line per clip that was listened to, with what was heard and its word error; listening that
was cut goes on where it was. `indextts2.training.data.Corpus` leaves the misread ones out of ``train``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import numpy as np

from indextts2.training.data import ENCODER_RATE_HZ, HEARD_FILE, Corpus, misread_paths
from indextts2.training.judges import word_error_rate


class Listener(Protocol):
    """What writes down the words of a recording, as `indextts2.training.judges.Transcriber` does."""

    def transcribe(self, samples: np.ndarray, sample_rate_hz: int) -> str: ...


def listen(
    corpus: Corpus, listener: Listener, progress: Callable[[list[Any]], Iterable[Any]] | None = None
) -> dict[str, float]:
    """Transcribe every clip that has not been listened to.

    Args:
        progress: wraps the list of clip numbers (for example tqdm).

    Returns:
        `clips`, their `word_error` together, and how many are `misread`.
    """
    path = corpus.folder / HEARD_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    done = {json.loads(line)["path"] for line in lines}
    waiting = [number for number, clip in enumerate(corpus.clips) if clip.path not in done]
    with path.open("a", encoding="utf-8") as file:
        for number in progress(waiting) if progress else waiting:
            clip = corpus.clips[number]
            heard = listener.transcribe(corpus.audio(number, ENCODER_RATE_HZ), ENCODER_RATE_HZ)
            error = word_error_rate([clip.text], [heard])
            file.write(json.dumps({"path": clip.path, "heard": heard, "word_error": round(error, 4)}) + "\n")
            file.flush()
    heard_by_path = {
        row["path"]: row["heard"] for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())
    }
    pairs = [(clip.text, heard_by_path[clip.path]) for clip in corpus.clips]
    return {
        "clips": len(pairs), "word_error": word_error_rate(*(list(side) for side in zip(*pairs, strict=True))),
        "misread": len(misread_paths(corpus.folder)),
    }  # fmt: skip
