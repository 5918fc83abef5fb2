"""How fast a GPU speaks: one stream, many at once, and how much memory that takes.

    python -m benchmarks.gpu --model DIR [--speaker voice.wav] [--dtype bfloat16] [--preset exact] [--streams 1 4 16 64]

Everything is measured twice in one run: as the package works on a GPU (CUDA graphs, decoding in bursts, the fused
activation), and `plain`, the same networks launched operation by operation, with a wait for every code. Every request
speaks for `--seconds`, whatever the weights, so a checkpoint of random weights will do.

For one stream: the real-time factor of a whole file and the first audio of the low-latency mode, medians over
`--runs`. For several at once, all submitted together: seconds of audio per second, and 50 and 95 of 100 first audios.
Memory is the most that torch had allocated on the device. The last line is all figures as JSON.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine import describe
from benchmarks.streaming import time_stream
from indextts2 import IndexTTS2, InferenceConfig, Voice
from indextts2.cli.console import say, table
from indextts2.config import ResolvedConfig
from indextts2.inference.engine import SpeechEngine, SpeechRequest
from indextts2.inference.named_voices import resolve_speaker
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.models.s2mel.dit import DiT
from indextts2.models.vocoder import activation
from indextts2.presets import PRESETS

TEXT = "The quick brown fox jumps over the lazy dog while the sun goes down behind the hills."
MIB = 1 << 20
# What is aimed at on an H100.
AIMS = {"rtf": 0.05, "first_audio": 0.15, "speedup_of_16": 6.0}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run the benchmark, print its tables and JSON, and return the figures.

    Raises:
        SystemExit: there is no CUDA device.
    """
    args = _parse(argv)
    if not torch.cuda.is_available():
        raise SystemExit("benchmarks.gpu measures CUDA devices, and torch finds none here")
    with IndexTTS2.from_pretrained(args.model, device="cuda", dtype=args.dtype, warm_up=False) as tts:
        config, voice = options(args, tts), tts.voice(resolve_speaker(args.speaker))
        torch.cuda.synchronize()
        start = time.perf_counter()
        tts.warm_up(config, voice, requests=max(args.streams))
        torch.cuda.synchronize()
        figures = {
            "benchmark": "gpu",
            **describe(tts.models.device, tts.models.gpt_dtype),
            "preset": args.preset,
            "beams": config.generation.num_beams,
            "prompt_frames": voice.prompt_mel.shape[-1],
            "recording_seconds": round(time.perf_counter() - start, 2),
            "graphs": measure(tts, voice, config, args.streams, args.runs),
        }
        with plain():
            figures["plain"] = measure(tts, voice, config, args.streams, args.runs)
    say(report(figures))
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


@contextlib.contextmanager
def plain() -> Iterator[None]:
    """Without graphs, bursts and the fused activation."""
    with (
        patch.object(UnifiedVoice, "bursts", None),
        patch.object(DiT, "padded", None),
        patch.object(activation, "triton_kernel", lambda *_: None),
    ):
        yield


def options(args: argparse.Namespace, tts: IndexTTS2) -> ResolvedConfig:
    """Options of every request: a segment of a fixed number of codes."""
    resolved = InferenceConfig(preset=args.preset, seed=1).resolved(tts.config)
    mel = tts.config.s2mel.mel
    codes = math.ceil(args.seconds * mel.sample_rate / mel.hop_length / tts.config.s2mel.frames_per_code)
    changes = {"max_mel_tokens": codes, "min_new_tokens": codes}
    if args.num_beams is not None:
        changes["num_beams"] = args.num_beams
    return dataclasses.replace(resolved, generation=dataclasses.replace(resolved.generation, **changes))


def measure(tts: IndexTTS2, voice: Voice, config: ResolvedConfig, streams: Sequence[int], runs: int) -> dict[str, Any]:
    """The figures of one version."""
    time_stream(tts, voice, TEXT, config, "low-latency")  # records and compiles what is left
    tts.infer(TEXT, voice, config=config)
    _reset_memory(tts)
    whole = [tts.infer(TEXT, voice, config=config) for _ in range(runs)]
    chunked = [time_stream(tts, voice, TEXT, config, "low-latency") for _ in range(runs)]
    alone = {
        "rtf": round(statistics.median(result.rtf for result in whole), 4),
        "audio_seconds": round(whole[0].duration, 2),
        "stages": {stage: round(seconds, 4) for stage, seconds in whole[-1].timings.items()},
        "first_audio": round(statistics.median(times["first_audio"] for times in chunked), 4),
        "memory_mib": _memory(tts),
    }
    together = {}
    for count in streams:
        speak_together(tts, voice, config, count)
        _reset_memory(tts)
        together[str(count)] = speak_together(tts, voice, config, count) | {"memory_mib": _memory(tts)}
    return {"one_stream": alone, "streams": together}


def speak_together(tts: IndexTTS2, voice: Voice, config: ResolvedConfig, count: int) -> dict[str, float]:
    """Throughput and first audio of `count` requests that are submitted at once."""
    with SpeechEngine(tts, max_running=count, max_chunks=1000) as engine:
        start = time.perf_counter()
        requests = [SpeechRequest(TEXT, voice, config=dataclasses.replace(config, seed=n)) for n in range(count)]
        jobs = [engine.submit(request) for request in requests]
        audio = sum(len(chunk.samples) / chunk.sample_rate for job in jobs for chunk in job)
        seconds = time.perf_counter() - start
        first = [job.timings["first_audio"] for job in jobs]
    return {
        "audio_per_second": round(audio / seconds, 2),
        "first_audio_p50": round(percentile(first, 50), 4),
        "first_audio_p95": round(percentile(first, 95), 4),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The least of `values` that `share` of 100 do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * share / 100) - 1)]


def report(figures: dict[str, Any]) -> str:
    """The tables of both versions, and what is aimed at."""
    versions = ("graphs", "plain")
    alone = [
        [name, *(f"{figures[name]['one_stream'][key]:.3f}" for key in ("rtf", "first_audio")),
         f"{figures[name]['one_stream']['memory_mib']:.0f}"]
        for name in versions
    ]  # fmt: skip
    together = [
        [count, *(f"{figures[name]['streams'][count][key]:.{digits}f}" for name in versions
                  for key, digits in (("audio_per_second", 1), ("first_audio_p95", 2), ("memory_mib", 0)))]
        for count in figures["graphs"]["streams"]
    ]  # fmt: skip
    columns = [f"{name}, {what}" for name in versions for what in ("audio s/s", "first p95, s", "MiB")]
    return "\n".join(
        [
            table(alone, ["one stream", "RTF", "first audio, s", "MiB"]),
            "",
            table(together, ["streams", *columns]),
            "",
            table(judged(figures), ["aim", "wanted", "found"]),
        ]
    )


def judged(figures: dict[str, Any]) -> list[list[str]]:
    """What is aimed at and what was found, as far as it was measured."""
    alone, streams = figures["graphs"]["one_stream"], figures["graphs"]["streams"]
    rows = [
        ["RTF of one stream", f"<= {AIMS['rtf']}", f"{alone['rtf']:.3f}"],
        ["first audio, s", f"<= {AIMS['first_audio']}", f"{alone['first_audio']:.3f}"],
    ]
    if "1" in streams and "16" in streams:
        speedup = streams["16"]["audio_per_second"] / streams["1"]["audio_per_second"]
        rows.append(["16 streams over one", f">= {AIMS['speedup_of_16']}", f"{speedup:.1f}"])
    return rows


def _reset_memory(tts: IndexTTS2) -> None:
    if tts.models.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(tts.models.device)


def _memory(tts: IndexTTS2) -> float:
    """The most that was allocated on the device since `_reset_memory`, MiB; 0 on a CPU."""
    device = tts.models.device
    return round(torch.cuda.max_memory_allocated(device) / MIB, 1) if device.type == "cuda" else 0.0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument("--speaker", help="reference audio, or the name of a voice [the first named voice]")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "float16", "bfloat16"],
                        help="of the GPT [%(default)s]")  # fmt: skip
    parser.add_argument("--preset", default="exact", choices=PRESETS, help="[%(default)s]")
    parser.add_argument("--num-beams", type=int, help="[the model's own]")
    parser.add_argument("--seconds", type=float, default=5.0, help="of speech in a request [%(default)s]")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 4, 16, 64], metavar="N",
                        help="requests at once [1 4 16 64]")  # fmt: skip
    parser.add_argument("--runs", type=int, default=5, help="of one stream [%(default)s]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
