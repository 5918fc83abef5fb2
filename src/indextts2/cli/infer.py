"""Speak a text in the voice of a reference and write it to a file."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts2.cli import live, options
from indextts2.cli.console import ProgressBar, say
from indextts2.config import ModelConfig
from indextts2.errors import UsageError
from indextts2.inference.named_voices import resolve_speaker

if TYPE_CHECKING:
    from indextts2.types import SpeechResult


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_text_options(parser)
    parser.add_argument(
        "-s",
        "--speaker",
        metavar="FILE",
        help="reference audio of 1 to 15 s, a voice file, or the name of a voice [the first named voice]",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="wav, flac, ogg, opus or mp3 by extension; - writes WAV to standard output "
        f"[{live.DEFAULT_OUTPUT}; --stream alone plays instead, where there is a sound card]",
    )
    options.add_model_options(parser)
    options.add_emotion_options(parser)
    options.add_generation_options(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--subtype", metavar="NAME", help="sample format, for example FLOAT or PCM_24 in WAV [PCM_16]")
    live.add_stream_option(group)
    group.add_argument(
        "--play", action="store_true", help="also play it, where there is a sound card (extra `playback`)"
    )
    group.add_argument("--plot", type=Path, metavar="FILE.png", help="draw waveform, mel and segments")
    group.add_argument("--json", action="store_true", help="print the summary as JSON on standard output")


def run(args: argparse.Namespace) -> int:
    if args.output is None and not live.only_plays(args):
        args.output = live.DEFAULT_OUTPUT
    if args.json and args.output == "-":
        raise UsageError("--json and --output - both want standard output; give the audio a file name")
    if args.stream is not None:
        live.check(args)
    from indextts2.audio.formats import output_format

    if args.output not in (None, "-"):
        output_format(Path(args.output).suffix, args.subtype)  # a format that cannot be written is refused at once
    emotion = options.emotion(args)
    options.inference_config(args, ModelConfig())  # a wrong value is reported before weights are read
    arriving = args.stream is not None and options.reads_standard_input(args)
    text = live.arriving_text() if arriving else options.read_text(args)
    with options.load_tts(args) as tts:
        config = options.inference_config(args, tts.config)
        model = str(tts.directory.path) if tts.directory else ""
        speaker = resolve_speaker(args.speaker)
        if args.stream is not None:
            summary = {"model": model, **live.run_stream(args, tts, text, speaker, emotion, config)}
        else:
            assert isinstance(text, str)
            with ProgressBar() as bar:
                result = tts.infer(text, speaker, emotion, config, on_progress=bar)
            _deliver(args, result)
            summary = {"model": model, **summarise(result, args.output)}
    say(summary_line(summary))
    if args.json:
        print(json.dumps(summary, ensure_ascii=False))
    return 0


def _deliver(args: argparse.Namespace, result: SpeechResult) -> None:
    """Write, play and draw a whole result, as the options ask."""
    _write(args.output, args.subtype, result)
    if args.play and (player := live.open_player(result.sample_rate, args.output)) is not None:
        with player:
            player.write(result.samples)
    if args.plot is not None:
        from indextts2.cli.plot import plot_result

        plot_result(result, args.plot)


def _write(output: str, subtype: str | None, result: SpeechResult) -> None:
    from indextts2.audio.writer import encode_audio

    if output != "-":
        result.save(output, subtype)
        return
    sys.stdout.buffer.write(encode_audio(result.samples, result.sample_rate, "wav", metadata=result.metadata))
    sys.stdout.buffer.flush()


def summarise(result: SpeechResult, output: str) -> dict[str, Any]:
    """Everything worth knowing about a run, for `--json`."""
    return {
        "output": output,
        "seconds": round(result.duration, 3),
        "sample_rate": result.sample_rate,
        "rtf": round(result.rtf, 4),
        "codes": len(result.mel_codes),
        "segments": [
            {
                "text": s.text,
                "start": round(s.start, 3),
                "end": round(s.end, 3),
                "codes": len(s.mel_codes),
                "hit_limit": s.hit_limit,
            }
            for s in result.segments
        ],
        "timings": {name: round(seconds, 4) for name, seconds in result.timings.items()},
        "seed": result.seed,
    }


def summary_line(summary: dict[str, Any]) -> str:
    """`output.wav: 3.42 s of audio, RTF 0.35, seed 7 (text 0.01 s, gpt 0.80 s, …)`."""
    stages = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in summary["timings"].items())
    return (
        f"{summary['output'] or 'played'}: {summary['seconds']:.2f} s of audio, RTF {summary['rtf']:.2f}, "
        f"seed {summary['seed']}, model {summary['model']} ({stages})"
    )
