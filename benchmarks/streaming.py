"""How soon the first sound comes in both streaming modes, or what the low-latency mode costs in likeness.

    python -m benchmarks.streaming [--speaker voice.wav] [--model DIR] [--text TEXT] [--runs 3]
    python -m benchmarks.streaming --compare [--speaker NAME …] [--texts FILE] [--whisper MODEL] [--similarity]

Times: the whole file and both modes in turn, in the same run, with a voice that is computed before; medians are shown.
`stalls` is how long a listener who starts playing with the first chunk has to wait for later ones.

Likeness: mel distances between the modes and jumps where chunks meet, over several texts and voices, see `likeness`.
With `--whisper` (extra `evaluate`) also the words that are heard, with `--similarity` the speaker. The options of the
plan hold for both. The last line is all figures as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks import likeness
from benchmarks.machine import describe
from indextts2 import IndexTTS2, InferenceConfig, Voice
from indextts2.audio.loader import load_reference
from indextts2.cli.console import say, table
from indextts2.config import ResolvedConfig
from indextts2.inference.low_latency import ChunkPlan
from indextts2.inference.named_voices import named_voices, resolve_speaker
from indextts2.inference.streaming import Mode


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables and JSON, and return the figures."""
    args = _parse(argv)
    plan = ChunkPlan(**{f.name: getattr(args, f.name) for f in dataclasses.fields(ChunkPlan)})
    with IndexTTS2.from_pretrained(args.model, device=args.device, dtype=args.dtype) as tts:
        figures = {
            "benchmark": "streaming",
            **describe(tts.models.device, tts.models.gpt_dtype),
            "model": str(tts.directory.path.name if tts.directory else args.model),
            "plan": dataclasses.asdict(plan),
            **(measure_likeness(args, tts, plan) if args.compare else measure_times(args, tts, plan)),
        }
    _show_likeness(figures) if args.compare else _show_times(figures)
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


def measure_likeness(args: argparse.Namespace, tts: IndexTTS2, plan: ChunkPlan) -> dict[str, Any]:
    """The figures of `likeness.compare` for all texts and voices asked for."""
    judges = likeness.Judges(args.whisper, args.similarity, torch.get_num_threads())
    speakers = args.speaker or list(named_voices()) or [None]
    references = [load_reference(resolve_speaker(speaker)) for speaker in speakers]
    texts = likeness.TEXTS if args.texts is None else args.texts.read_text(encoding="utf-8").splitlines()
    texts = [text for text in texts if text.strip()]
    return likeness.compare(tts, references, texts, _config(args, tts).resolved(tts.config), plan, judges)


def measure_times(args: argparse.Namespace, tts: IndexTTS2, plan: ChunkPlan) -> dict[str, Any]:
    """Medians over the runs: seconds of the whole file; first audio, total and stalls of each mode."""
    config = _config(args, tts).resolved(tts.config)
    voice = tts.voice(resolve_speaker(args.speaker[0] if args.speaker else None))
    for mode in ("exact", "low-latency"):
        time_stream(tts, voice, "Warm up.", config, mode)
    rows: dict[str, list[dict[str, float]]] = {"whole": [], "exact": [], "low-latency": []}
    audio = 0.0
    for _ in range(args.runs):
        result = tts.infer(args.text, voice, config=config)
        audio = result.duration
        rows["whole"].append({"total": result.timings["total"]})
        rows["exact"].append(time_stream(tts, voice, args.text, config, "exact"))
        rows["low-latency"].append(time_stream(tts, voice, args.text, config, "low-latency", plan))
    seconds = {
        name: {key: round(statistics.median(run[key] for run in timed), 4) for key in timed[0]}
        for name, timed in rows.items()
    }
    first = seconds["low-latency"]["first_audio"] / seconds["whole"]["total"]
    return {
        "prompt_frames": voice.prompt_mel.shape[2],
        "words": len(args.text.split()),
        "runs": args.runs,
        "audio_seconds": round(audio, 3),
        "seconds": seconds,
        "first_audio_to_whole": round(first, 4),
    }


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


def _show_times(figures: dict[str, Any]) -> None:
    columns = ("first_audio", "total", "stalls")
    rows = [
        [name, *(f"{row[column]:.3f}" if column in row else "-" for column in columns)]
        for name, row in figures["seconds"].items()
    ]
    ratio = figures["first_audio_to_whole"]
    say(f"{figures['audio_seconds']} s of audio; first low-latency audio / whole file: {ratio}")
    say(table(rows, ["seconds", *columns]))


def _show_likeness(figures: dict[str, Any]) -> None:
    say(table([[n, f"{v:.2f}"] for n, v in figures["mel_distance_db"].items()], ["mel distance", "dB"]))
    for value in ("energy_db", "click"):
        rows = [
            [name, *(f"{number:.2f}" for number in row[value].values())]
            for name, row in figures["jumps"].items()
            if value in row
        ]
        say(table(rows, [f"{value} at {figures['joints']} joints", "mean", "p50", "p95", "max"]))
    say(f"joints beyond 95 of 100 places of the exact rendering: {figures['joints_beyond']}")
    for name in ("word_error", "similarity"):
        if name in figures:
            say(table([[n, f"{v:.3f}"] for n, v in figures[name].items()], [name.replace("_", " "), ""]))


def _config(args: argparse.Namespace, tts: IndexTTS2) -> InferenceConfig:
    options = InferenceConfig(seed=args.seed, steps=args.steps).resolved(tts.config)
    given = {"num_beams": args.num_beams, "max_mel_tokens": args.max_codes}
    changes = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(options, generation=dataclasses.replace(options.generation, **changes))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = _parser()
    args = parser.parse_args(argv)
    if not args.compare and (args.texts or args.whisper or args.similarity or len(args.speaker) > 1):
        parser.error("several speakers, --texts, --whisper and --similarity go with --compare")
    return args


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument(
        "--speaker", action="append", default=[], metavar="VOICE",
        help="reference audio, or the name of a voice [the first named voice; all with --compare]",
    )  # fmt: skip
    parser.add_argument("--text", default=likeness.TEXTS[0], help="what is timed")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--steps", type=int, help="flow steps [the model's own]")
    parser.add_argument("--num-beams", type=int, help="[the model's own]")
    parser.add_argument("--max-codes", type=int, help="[the model's own]")
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    group = parser.add_argument_group("likeness")
    group.add_argument("--compare", action="store_true", help="measure likeness instead of times")
    group.add_argument("--texts", type=Path, metavar="FILE", help="one text a line [eight sentences]")
    group.add_argument("--whisper", metavar="MODEL",
                       help="also the word error: name or folder; `packaged:DIR`: that of the packages")  # fmt: skip
    group.add_argument("--similarity", action="store_true", help="also the likeness of the speaker, by Resemblyzer")
    group = parser.add_argument_group("plan of the low-latency mode, see ChunkPlan")
    for field in dataclasses.fields(ChunkPlan):
        kind = float if isinstance(field.default, float) else int
        group.add_argument(f"--{field.name.replace('_', '-')}", type=kind, default=field.default, metavar="N")
    return parser


if __name__ == "__main__":
    main()
