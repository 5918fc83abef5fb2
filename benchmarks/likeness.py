"""What the low-latency mode costs in likeness: three renderings of the same codes, compared and judged.

"exact" is the whole-file result, "uncut" the low-latency mode with one chunk per segment (another start noise, no
cuts), "low-latency" the chunks (the noise of "uncut", cut). So uncut to exact is what another noise does to the mel,
low-latency to uncut what the cuts do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from indextts2 import IndexTTS2, Voice
from indextts2.config import ResolvedConfig
from indextts2.inference.low_latency import ChunkPlan
from indextts2.inference.progress import Run
from indextts2.inference.speaking import speak, speak_alone
from indextts2.inference.streaming import Mode, render_of
from indextts2.training.judges import SpeakerJudge, Transcriber, packaged_whisper, word_error_rate
from indextts2.types import Waveform

UNCUT = ChunkPlan(first_frames=1 << 20, max_frames=1 << 20, prompt_frames=None)
DECIBELS = 20 / math.log(10)
JUMP_MS = 10.0
# Steps between two near silences are inaudible: power below this share of the mean counts as this much.
SILENCE = 1e-5
PACKAGED = "packaged:"
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and then it sleeps for hours in the warm afternoon sun.",
    "We walked along the river until it was dark, and nobody said a word about what had happened in the morning.",
    "Please send the letter to my office before noon, or leave it with the young man at the front desk.",
    "Is there a reason why the garden gate was open all night, and who was the last one to come home?",
    "The old clock in the kitchen has not been right for years, but my grandmother still looks at it every day.",
    "Seven small boats came back to the harbour yesterday, each of them full of silver fish and tired people.",
    "When the music stopped, everyone turned around to see whether the strange visitor would dance alone.",
    "Most of the books on this shelf are about birds, although a few of them deal with ships and the weather.",
)


class Rendering(NamedTuple):
    """Joined mel (n_mels, N) and samples, and the samples at which pieces of one segment meet."""

    mel: np.ndarray
    samples: np.ndarray
    joints: list[int]


class Jumps(NamedTuple):
    """What an ear would notice at some places of a waveform, one value for each place.

    `energy_db`: step of the energy between the 10 ms before and after. `click`: ratio of the largest second difference
    within 10 ms to its root mean square in the 100 ms around.
    """

    energy_db: np.ndarray
    click: np.ndarray


class Judges:
    """Whisper for the words and Resemblyzer for the speaker, as far as they are asked for."""

    def __init__(self, whisper: str | None, similarity: bool, threads: int) -> None:
        """`whisper`: name or folder of a model; `packaged:DIR` joins the packaged one there."""
        self.transcriber: Transcriber | None = None
        if whisper is not None:
            packaged = whisper.startswith(PACKAGED)
            model = packaged_whisper(Path(whisper.removeprefix(PACKAGED))) if packaged else whisper
            self.transcriber = Transcriber(model, threads)
        self.speakers = SpeakerJudge() if similarity else None


def compare(
    tts: IndexTTS2,
    references: Sequence[Waveform],
    texts: Sequence[str],
    config: ResolvedConfig,
    plan: ChunkPlan,
    judges: Judges,
) -> dict[str, Any]:
    """Every reference says every text in all three renderings.

    Returns:
        `mel_distance_db`: means over the utterances. `jumps`: where chunks meet, and at the same places of the other
        renderings; `anywhere`: every 10 ms of the exact rendering; `joints_beyond`: share of the joints whose jump
        exceeds 95 of 100 places of the exact rendering (chance alone: 0.05). What the judges say, if there are any.
    """
    utterances = []
    voices = [tts.voice(reference) for reference in references]
    for reference, voice in zip(references, voices, strict=True):
        for text in texts:
            utterances.append((reference, text, render_all(tts, voice, text, config, plan)))
    found = [renderings for *_, renderings in utterances]
    figures: dict[str, Any] = {
        "utterances": len(found),
        "joints": sum(len(one["low-latency"].joints) for one in found),
        "mel_distance_db": mean_distances(found),
        **jump_figures(found, tts.sample_rate),
    }
    if judges.transcriber is not None:
        figures["word_error"] = word_errors(judges.transcriber, utterances, tts.sample_rate)
    if judges.speakers is not None:
        figures["similarity"] = similarities(judges.speakers, utterances, tts.sample_rate)
    return figures


def render_all(
    tts: IndexTTS2, voice: Voice, text: str, config: ResolvedConfig, plan: ChunkPlan
) -> dict[str, Rendering]:
    """The three renderings by name."""
    return {
        "exact": render(tts, voice, text, config, "exact"),
        "uncut": render(tts, voice, text, config, "low-latency", UNCUT),
        "low-latency": render(tts, voice, text, config, "low-latency", plan),
    }


def render(
    tts: IndexTTS2, voice: Voice, text: str, config: ResolvedConfig, mode: Mode, plan: ChunkPlan | None = None
) -> Rendering:
    """Speak `text` and keep everything, without the silence between segments."""
    pieces = list(speak_alone(tts, speak(tts, text, voice, None, config, Run(), render_of(mode, config, plan))))
    ends = np.cumsum([len(piece.samples) for piece in pieces])
    joints = [int(end) for end, piece in zip(ends, pieces, strict=True) if not piece.last]
    mel = np.concatenate([piece.mel for piece in pieces], axis=1)
    return Rendering(mel, np.concatenate([piece.samples for piece in pieces]), joints)


def mean_distances(found: Sequence[dict[str, Rendering]]) -> dict[str, float]:
    """Mel distances in dB, by pair of renderings."""
    pairs = (("uncut", "exact"), ("low-latency", "exact"), ("low-latency", "uncut"))
    return {
        f"{one} to {other}": round(float(np.mean([mel_distance(r[one].mel, r[other].mel) for r in found])), 3)
        for one, other in pairs
    }


def mel_distance(mel: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference of two natural-log mels, in dB."""
    return float(np.sqrt(np.mean((mel - other) ** 2)) * DECIBELS)


def jump_figures(found: Sequence[dict[str, Rendering]], sample_rate: int) -> dict[str, Any]:
    """Statistics of the jumps, see `compare`."""
    at_joints = {
        name: merged([jumps(one[name].samples, one["low-latency"].joints, sample_rate) for one in found])
        for name in found[0]
    }
    exact = [one["exact"].samples for one in found]
    anywhere = merged([jumps(samples, everywhere(samples, sample_rate), sample_rate) for samples in exact])
    beyond = {
        name: round(float(np.mean(values > np.percentile(usual, 95))), 3) if len(values) else 0.0
        for name, values, usual in zip(Jumps._fields, at_joints["low-latency"], anywhere, strict=True)
    }
    figures = {name: statistics_of(one) for name, one in at_joints.items()}
    return {"jumps": {**figures, "anywhere": statistics_of(anywhere)}, "joints_beyond": beyond}


def jumps(samples: np.ndarray, places: Sequence[int], sample_rate: int) -> Jumps:
    """The jumps at `places`, each at least 10 ms from either end."""
    reach = round(sample_rate * JUMP_MS / 1000)
    curve = np.abs(np.diff(samples, 2))
    floor = SILENCE * float(np.mean(samples**2)) + 1e-12
    steps, clicks = [], []
    for place in places:
        before, after = (np.mean(part**2) + floor for part in np.split(samples[place - reach : place + reach], 2))
        steps.append(abs(10 * math.log10(after / before)))
        around = curve[max(0, place - 5 * reach) : place + 5 * reach]
        clicks.append(curve[place - reach : place + reach].max() / (np.sqrt(np.mean(around**2)) + 1e-10))
    return Jumps(np.array(steps), np.array(clicks))


def everywhere(samples: np.ndarray, sample_rate: int) -> list[int]:
    """Places every 10 ms, ends left out."""
    reach = round(sample_rate * JUMP_MS / 1000)
    return list(range(reach, len(samples) - reach, reach))


def merged(parts: Sequence[Jumps]) -> Jumps:
    """All jumps together."""
    return Jumps(*(np.concatenate(values) for values in zip(*parts, strict=True)))


def statistics_of(found: Jumps) -> dict[str, dict[str, float]]:
    """Mean, median, 95th percentile and maximum of each value; empty without places."""
    return {
        name: {
            "mean": round(float(values.mean()), 3),
            "p50": round(float(np.percentile(values, 50)), 3),
            "p95": round(float(np.percentile(values, 95)), 3),
            "max": round(float(values.max()), 3),
        }
        for name, values in zip(Jumps._fields, found, strict=True)
        if len(values)
    }


Utterance = tuple[Waveform, str, dict[str, Rendering]]


def word_errors(transcriber: Transcriber, utterances: Sequence[Utterance], sample_rate: int) -> dict[str, float]:
    """Word error by rendering."""
    texts = [text for _, text, _ in utterances]
    return {
        name: round(
            word_error_rate(texts, [transcriber.transcribe(r[name].samples, sample_rate) for *_, r in utterances]), 4
        )
        for name in utterances[0][2]
    }


def similarities(judge: SpeakerJudge, utterances: Sequence[Utterance], sample_rate: int) -> dict[str, float]:
    """Mean cosine of each rendering to the reference recording, and of the two modes to each other."""
    rows: dict[str, list[float]] = {}
    for reference, _, renderings in utterances:
        own = judge.embed(reference.samples, reference.sample_rate)
        vectors = {name: judge.embed(one.samples, sample_rate) for name, one in renderings.items()}
        for name, vector in vectors.items():
            rows.setdefault(f"{name} to reference", []).append(float(vector @ own))
        rows.setdefault("low-latency to exact", []).append(float(vectors["low-latency"] @ vectors["exact"]))
    return {name: round(float(np.mean(values)), 4) for name, values in rows.items()}
