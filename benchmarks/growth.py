"""How cost grows: seconds and peak memory against the length of the text, of the prompt, and requests at once.

    python -m benchmarks.growth [--sweep segments prompt requests] [--model DIR] [--json FILE] [--plot FOLDER]

Every segment has the same number of codes, so that a point differs from its neighbours in one thing only. To each
series a straight line is fitted; its residual is the root mean square distance of the points over their mean.
`--clock cpu` counts processor time of one thread, for a machine that is busy with other things. The last line of the
output is all figures as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import CLOCKS, Clock, add_clock, check_clock
from benchmarks.machine import describe
from benchmarks.memory import peak_mib, reset_peak
from indextts2 import IndexTTS2, InferenceConfig, Voice, Waveform
from indextts2.audio.loader import load_reference
from indextts2.cli.console import say, table
from indextts2.inference.engine import SpeechEngine, SpeechRequest
from indextts2.inference.named_voices import resolve_speaker

SENTENCE = "The boat came home at noon."
POINTS = {"segments": [1, 2, 4, 8, 16, 32, 64], "prompt": [1, 2, 3, 5, 8, 10, 15], "requests": [1, 2, 4, 8]}
UNITS = {"segments": "segments of text", "prompt": "seconds of prompt", "requests": "requests at once"}


@dataclass
class Bench:
    """A model, a recording, and what every segment is spoken with."""

    tts: IndexTTS2
    recording: Waveform
    config: InferenceConfig
    voice: Voice

    def cut(self, seconds: float) -> Waveform:
        """So much of the recording, from its beginning; repeated where it is too short."""
        rate = self.recording.sample_rate
        return Waveform(np.resize(self.recording.samples, round(seconds * rate)), rate)

    def speak(self, segments: int, speaker: Voice | Waveform) -> float:
        """Speak so many segments; seconds of audio."""
        result = self.tts.infer(" ".join([SENTENCE] * segments), speaker, config=self.config)
        if len(result.segments) != segments:
            raise RuntimeError(f"{segments} sentences gave {len(result.segments)} segments")
        return result.duration

    def text(self, segments: int) -> float:
        return self.speak(segments, self.voice)

    def prompt(self, seconds: int) -> float:
        """Encode a prompt of that length and speak one segment with it."""
        self.tts.clear_caches()
        return self.speak(1, self.cut(seconds))

    def requests(self, count: int) -> float:
        """Speak one segment for so many at once."""
        with SpeechEngine(self.tts, max_running=count) as engine:
            jobs = [engine.submit(SpeechRequest(SENTENCE, self.voice, config=self.config)) for _ in range(count)]
            return sum(len(chunk.samples) / chunk.sample_rate for job in jobs for chunk in job)


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the sweeps, print their tables and the JSON, draw them if asked, and return the figures."""
    args = _parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    with _without_warnings(), IndexTTS2.from_pretrained(args.model, device="cpu") as tts:
        bench = _prepare(args, tts)
        sweeps = {"segments": bench.text, "prompt": bench.prompt, "requests": bench.requests}
        figures = {
            "benchmark": "growth",
            **describe(tts.models.device, tts.models.gpt_dtype),
            "model": tts.models.fingerprint[:16],
            "codes": args.codes,
            "steps": bench.config.resolved(tts.config).steps,
            "prompt_seconds": args.prompt_seconds,
            "clock": args.clock,
            "sweeps": {name: sweep(sweeps[name], getattr(args, name), CLOCKS[args.clock]) for name in args.sweep},
        }
    for name, series in figures["sweeps"].items():
        say(report(name, series))
        if args.plot:
            plot(name, series, args.plot / f"growth_{name}.png")
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Every segment ends at its limit of codes, as it should here."""
    logger = logging.getLogger("indextts2")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _prepare(args: argparse.Namespace, tts: IndexTTS2) -> Bench:
    recording = load_reference(resolve_speaker(args.speaker))
    options = InferenceConfig(seed=1, steps=args.steps).resolved(tts.config)
    generation = dataclasses.replace(options.generation, min_new_tokens=args.codes, max_mel_tokens=args.codes)
    pieces = len(tts.tokenizer.tokenize(SENTENCE)) + 1  # and the blank before it, where another one precedes
    config = dataclasses.replace(
        InferenceConfig(seed=1, steps=args.steps), generation=generation, max_text_tokens_per_segment=pieces
    )
    bench = Bench(tts, recording, config, tts.voice(recording))
    bench.voice = tts.voice(bench.cut(args.prompt_seconds))
    bench.text(1)  # warm up
    return bench


def sweep(work: Callable[[int], float], points: Iterable[int], clock: Clock) -> dict[str, Any]:
    """Seconds, peak memory and seconds of audio at each point, in rising order, with the lines through them."""
    series: dict[str, Any] = {"x": sorted(points), "seconds": [], "peak_mib": [], "audio_seconds": []}
    for point in series["x"]:
        own_peak = reset_peak()
        start = clock()
        audio = work(point)
        series["seconds"].append(round(clock() - start, 4))
        series["peak_mib"].append(round(peak_mib(), 1))
        series["audio_seconds"].append(round(audio, 3))
    series["peak_of_each_point"] = own_peak
    series["lines"] = {name: fit(series["x"], series[name]) for name in ("seconds", "peak_mib")}
    return series


def fit(x: list[float], y: list[float]) -> dict[str, float]:
    """The straight line through the points, and how far they are from it."""
    if len(x) < 2:
        return {"at_zero": round(float(np.mean(y)), 4), "per_unit": 0.0, "residual": 0.0}
    per_unit, at_zero = np.polyfit(x, y, 1)
    distance = np.polyval([per_unit, at_zero], x) - np.asarray(y)
    residual = float(np.sqrt(np.mean(distance**2)) / np.mean(y))
    return {
        "at_zero": float(f"{at_zero:.4g}"),
        "per_unit": float(f"{per_unit:.4g}"),
        "residual": float(f"{residual:.3g}"),
    }


def report(name: str, series: dict[str, Any]) -> str:
    """The series as a table, and the lines below it."""
    columns = ("x", "seconds", "peak_mib", "audio_seconds")
    rows = [[str(value) for value in row] for row in zip(*(series[column] for column in columns), strict=True)]
    lines = [
        f"{what}: {line['at_zero']} + {line['per_unit']} per unit, residual {100 * line['residual']:.1f} %"
        for what, line in series["lines"].items()
    ]
    return "\n".join([table(rows, [UNITS[name], "seconds", "peak, MiB", "audio, s"]), *lines])


def plot(name: str, series: dict[str, Any], path: Path) -> None:
    """Draw seconds and memory with their lines."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    for axes, (what, label) in zip(
        figure.subplots(1, 2), {"seconds": "seconds", "peak_mib": "peak memory, MiB"}.items(), strict=True
    ):
        line = series["lines"][what]
        axes.plot(series["x"], series[what], "o")
        ends = np.array([0, series["x"][-1]])
        axes.plot(ends, line["at_zero"] + line["per_unit"] * ends, linewidth=1)
        axes.set(xlabel=UNITS[name], ylabel=label, xlim=(0, None), ylim=(0, None))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweep", nargs="+", choices=POINTS, default=list(POINTS), help="[all]")
    for name, points in POINTS.items():
        default = ",".join(map(str, points))
        parser.add_argument(f"--{name}", type=lambda text: [int(n) for n in text.split(",")], default=points,
                            metavar="N,N,...", help=f"{UNITS[name]} [{default}]")  # fmt: skip
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument("--speaker", help="reference audio, or the name of a voice [the first named voice]")
    parser.add_argument("--prompt-seconds", type=float, default=3.0, help="where it does not vary [%(default)s]")
    parser.add_argument("--codes", type=int, default=75, help="of every segment; 50 are a second [%(default)s]")
    parser.add_argument("--steps", type=int, help="flow steps [the model's own]")
    add_clock(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw each sweep into this folder")
    args = parser.parse_args(argv)
    check_clock(parser, args)
    return args


if __name__ == "__main__":
    main()
