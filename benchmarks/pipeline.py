"""The nine-row benchmark: where the time of one synthesis goes, first use of a voice included.

    python -m benchmarks.pipeline --model DIR --speaker voice.wav [--text TEXT] [--runs 3] [--json FILE]

Each run starts with an empty voice cache; the row shows the median over the runs. The last line is the same as JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from benchmarks.machine import describe
from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig
from indextts2.cli.console import say, table
from indextts2.types import SpeechResult

TEXT = "The quick brown fox jumps over the lazy dog, and then it sleeps in the warm afternoon sun."
# Row -> the timings of a SpeechResult that it adds up.
ROWS = {
    "text processing": ("text",),
    "mel": ("mel",),
    "speaker encoding": ("speaker_encoding",),
    "semantic encoding": ("semantic_encoding", "emotion_encoding"),
    "GPT": ("gpt", "gpt_latents"),
    "flow matching": ("flow",),
    "vocoder": ("vocoder",),
    "total": ("total",),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its table and JSON, and return the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument("--speaker", required=True, help="reference audio")
    parser.add_argument("--text", default=TEXT)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--max-codes", type=int, default=1500)
    parser.add_argument("--device")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    args = parser.parse_args(argv)
    generation = GenerationConfig(num_beams=args.num_beams, max_mel_tokens=args.max_codes)
    config = InferenceConfig(generation=generation, seed=1)
    with IndexTTS2.from_pretrained(args.model, device=args.device, dtype=args.dtype) as tts:
        tts.infer("Warm up.", args.speaker, config=config)
        results = []
        for _ in range(args.runs):
            tts.clear_caches()
            results.append(tts.infer(args.text, args.speaker, config=config))
        figures = {"benchmark": "pipeline", **describe(tts.models.device, tts.models.gpt_dtype), **measure(results)}
        figures["model"] = str(tts.directory.path.name if tts.directory else args.model)
    rows = [[name, f"{figures['seconds'][name]:.3f}"] for name in ROWS]
    say(table([*rows, ["RTF", f"{figures['rtf']:.3f}"]], ["stage", "seconds"]))
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


def measure(results: list[SpeechResult]) -> dict[str, Any]:
    """Median seconds per row, seconds of audio and RTF."""
    seconds = {
        row: statistics.median(sum(r.timings.get(name, 0.0) for name in names) for r in results)
        for row, names in ROWS.items()
    }
    audio = statistics.median(r.duration for r in results)
    return {
        "runs": len(results),
        "audio_seconds": round(audio, 3),
        "codes": len(results[0].mel_codes),
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "rtf": round(seconds["total"] / audio, 4),
    }


if __name__ == "__main__":
    main()
