"""How soon the first sound comes in both streaming modes, and what the low-latency mode costs in likeness.

    python -m benchmarks.streaming --speaker voice.wav [--model DIR] [--text TEXT] [--runs 3] [--look-ahead-frames 22 …]

Whole-file time and both modes are timed in turn, in the same run, with a voice that is computed before; medians are
shown. `stalls` is how long a listener who starts playing with the first chunk has to wait for later ones.

Likeness: three renderings of the same codes. "exact" is the whole-file result, "uncut" the low-latency mode with one
chunk per segment (another start noise, no cuts), "low-latency" the chunks (the noise of "uncut", cut). So uncut to
exact is what another noise does to the mel, low-latency to uncut what the cuts do. Jumps are measured where chunks
meet, and at the same places of the two other renderings. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.machine import describe
from indextts2 import IndexTTS2, InferenceConfig, Voice
from indextts2.cli.console import say, table
from indextts2.config import ResolvedConfig
from indextts2.inference.low_latency import ChunkPlan
from indextts2.inference.named_voices import resolve_speaker
from indextts2.inference.progress import Run
from indextts2.inference.speaking import speak, speak_alone
from indextts2.inference.streaming import Mode, render_of

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps for hours in the warm afternoon sun."
UNCUT = ChunkPlan(first_frames=1 << 20, max_frames=1 << 20, prompt_frames=None)
DECIBELS = 20 / math.log(10)
JUMP_MS = 10.0


class Rendering(NamedTuple):
    """Joined mel (n_mels, N) and samples, and the samples at which pieces of one segment meet."""

    mel: np.ndarray
    samples: np.ndarray
    joints: list[int]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables and JSON, and return the figures."""
    args = _parser().parse_args(argv)
    plan = ChunkPlan(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ChunkPlan)})
    with IndexTTS2.from_pretrained(args.model, device=args.device, dtype=args.dtype) as tts:
        config = _config(args, tts).resolved(tts.config)
        voice = tts.voice(resolve_speaker(args.speaker))
        for mode in ("exact", "low-latency"):
            time_stream(tts, voice, "Warm up.", config, mode)
        times = measure_times(tts, voice, args.text, config, plan, args.runs)
        likeness = measure_likeness(tts, voice, args.text, config, plan)
        figures = {
            "benchmark": "streaming",
            **describe(tts.models.device, tts.models.gpt_dtype),
            "model": str(tts.directory.path.name if tts.directory else args.model),
            "prompt_frames": voice.prompt_mel.shape[2],
            "words": len(args.text.split()),
            "runs": args.runs,
            "plan": dataclasses.asdict(plan),
            **times,
            **likeness,
        }
    _show(figures)
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


def measure_times(
    tts: IndexTTS2, voice: Voice, text: str, config: ResolvedConfig, plan: ChunkPlan, runs: int
) -> dict[str, Any]:
    """Medians over the runs: seconds of the whole file; first audio, total and stalls of each mode."""
    rows: dict[str, list[dict[str, float]]] = {"whole": [], "exact": [], "low-latency": []}
    audio = 0.0
    for _ in range(runs):
        result = tts.infer(text, voice, config=config)
        audio = result.duration
        rows["whole"].append({"total": result.timings["total"]})
        rows["exact"].append(time_stream(tts, voice, text, config, "exact"))
        rows["low-latency"].append(time_stream(tts, voice, text, config, "low-latency", plan))
    seconds = {
        name: {key: round(statistics.median(run[key] for run in timed), 4) for key in timed[0]}
        for name, timed in rows.items()
    }
    first = seconds["low-latency"]["first_audio"] / seconds["whole"]["total"]
    return {"audio_seconds": round(audio, 3), "seconds": seconds, "first_audio_to_whole": round(first, 4)}


def time_stream(
    tts: IndexTTS2, voice: Voice, text: str, config: ResolvedConfig, mode: Mode, plan: ChunkPlan | None = None
) -> dict[str, float]:
    """Seconds until the first audio and in all, and of stalls while it is played."""
    start = time.perf_counter()
    arrivals, lengths = [], []
    for chunk in tts.stream(text, voice, config=config, mode=mode, plan=plan):
        arrivals.append(time.perf_counter() - start)
        lengths.append(len(chunk.samples) / chunk.sample_rate)
    return {"first_audio": arrivals[0], "total": arrivals[-1], "stalls": stalls(arrivals, lengths)}


def stalls(arrivals: list[float], lengths: list[float]) -> float:
    """Seconds of silence that a listener hears between chunks which arrive at these times and last so long."""
    ready, waited = arrivals[0], 0.0
    for arrival, length in zip(arrivals, lengths, strict=True):
        waited += max(0.0, arrival - ready)
        ready = max(ready, arrival) + length
    return waited


def measure_likeness(
    tts: IndexTTS2, voice: Voice, text: str, config: ResolvedConfig, plan: ChunkPlan
) -> dict[str, Any]:
    """Mel distances (dB, root mean square over all bands and frames) and jumps at the joints, by rendering."""
    exact = render(tts, voice, text, config, "exact")
    uncut = render(tts, voice, text, config, "low-latency", UNCUT)
    chunks = render(tts, voice, text, config, "low-latency", plan)
    renderings = {"exact": exact, "uncut": uncut, "low-latency": chunks}
    return {
        "mel_distance_db": {
            "uncut to exact": mel_distance(uncut.mel, exact.mel),
            "low-latency to exact": mel_distance(chunks.mel, exact.mel),
            "low-latency to uncut": mel_distance(chunks.mel, uncut.mel),
        },
        "joints": len(chunks.joints),
        "jumps": {name: jumps(one.samples, chunks.joints, tts.sample_rate) for name, one in renderings.items()},
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


def mel_distance(mel: np.ndarray, other: np.ndarray) -> float:
    """Root mean square difference of two natural-log mels, in dB."""
    return round(float(np.sqrt(np.mean((mel - other) ** 2)) * DECIBELS), 3)


def jumps(samples: np.ndarray, joints: list[int], sample_rate: int) -> dict[str, float]:
    """What an ear would notice at the joints.

    Returns:
        `energy_db`: mean step of the energy between the 10 ms before and after a joint. `click`: mean ratio of the
        largest second difference within 10 ms of a joint to its root mean square in the 100 ms around.
    """
    reach = round(sample_rate * JUMP_MS / 1000)
    curve = np.abs(np.diff(samples, 2))
    steps, clicks = [], []
    for joint in joints:
        before, after = (np.mean(part**2) + 1e-10 for part in np.split(samples[joint - reach : joint + reach], 2))
        steps.append(abs(10 * math.log10(after / before)))
        around = curve[max(0, joint - 5 * reach) : joint + 5 * reach]
        clicks.append(curve[joint - reach : joint + reach].max() / (np.sqrt(np.mean(around**2)) + 1e-10))
    if not joints:
        return {"energy_db": 0.0, "click": 0.0}
    return {"energy_db": round(float(np.mean(steps)), 3), "click": round(float(np.mean(clicks)), 3)}


def _show(figures: dict[str, Any]) -> None:
    columns = ("first_audio", "total", "stalls")
    rows = [
        [name, *(f"{row[column]:.3f}" if column in row else "-" for column in columns)]
        for name, row in figures["seconds"].items()
    ]
    ratio = figures["first_audio_to_whole"]
    say(f"{figures['audio_seconds']} s of audio; first low-latency audio / whole file: {ratio}")
    say(table(rows, ["seconds", *columns]))
    say(table([[n, f"{v:.2f}"] for n, v in figures["mel_distance_db"].items()], ["mel distance", "dB"]))
    rows = [[name, f"{row['energy_db']:.2f}", f"{row['click']:.2f}"] for name, row in figures["jumps"].items()]
    say(table(rows, [f"at {figures['joints']} joints", "energy, dB", "click"]))


def _config(args: argparse.Namespace, tts: IndexTTS2) -> InferenceConfig:
    options = InferenceConfig(seed=args.seed, steps=args.steps).resolved(tts.config)
    given = {"num_beams": args.num_beams, "max_mel_tokens": args.max_codes}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(options, generation=dataclasses.replace(options.generation, **changes))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument("--speaker", help="reference audio, or the name of a voice [the first named voice]")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="flow steps [the model's own]")
    parser.add_argument("--num-beams", type=int, help="[the model's own]")
    parser.add_argument("--max-codes", type=int, help="[the model's own]")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    group = parser.add_argument_group("plan of the low-latency mode, see ChunkPlan")
    for field in dataclasses.fields(ChunkPlan):
        kind = float if isinstance(field.default, float) else int
        group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N")
    return parser


if __name__ == "__main__":
    main()
