"""`infer --stream`: write and play speech while it is made, of a text that may still be arriving."""

from __future__ import annotations

import argparse
import codecs
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from indextts2.cli.console import ProgressBar, say
from indextts2.errors import AudioError, MissingExtraError, TextError, UsageError

if TYPE_CHECKING:
    from indextts2.audio.playback import Player
    from indextts2.config import InferenceConfig
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2, Speaker

# The modes of indextts2.inference.streaming, which is too heavy to be imported for `--help`.
MODES = ("exact", "low-latency")
READ_BYTES = 1 << 16
DEFAULT_OUTPUT = "output.wav"


def add_stream_option(group: argparse._ArgumentGroup) -> None:
    """`--stream [MODE]`."""
    group.add_argument(
        "--stream",
        nargs="?",
        const=MODES[0],
        choices=MODES,
        help="play it while it is made, or with --output write a growing WAV: whole segments (exact, the default), or "
        "pieces of them (low-latency); a text from standard input is spoken sentence by sentence as it arrives",
    )


def only_plays(args: argparse.Namespace) -> bool:
    """Whether nothing asks for a file, so that --stream plays, if it can."""
    return args.stream is not None and args.output is None and args.subtype is None and not args.play


def check(args: argparse.Namespace) -> None:
    """Raise UsageError for options that do not go with --stream."""
    from pathlib import Path

    if args.output not in (None, "-") and Path(args.output).suffix.lower() != ".wav":
        raise UsageError(f"--stream writes WAV; {args.output} asks for another format")
    if args.plot is not None:
        raise UsageError("--plot draws a whole result; leave --stream out")


def arriving_text() -> Iterator[str]:
    """Standard input, as it comes.

    Raises:
        TextError: it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    try:
        # Straight from the descriptor: a thread that waits in a buffered read cannot be left behind at the end.
        while data := os.read(sys.stdin.fileno(), READ_BYTES):
            yield decoder.decode(data)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise TextError("standard input is not UTF-8 text; convert it first") from error


def run_stream(
    args: argparse.Namespace,
    tts: IndexTTS2,
    text: str | Iterator[str],
    speaker: Speaker,
    emotion: EmotionInput,
    config: InferenceConfig,
) -> dict[str, Any]:
    """Speak into the output and the loudspeaker, as the options ask; the summary."""
    from indextts2.inference.streaming import StreamingSynthesizer

    samples = 0
    with ProgressBar() as bar, ExitStack() as stack, StreamingSynthesizer(tts, args.stream) as synthesizer:
        chunks = synthesizer.start(text, speaker, emotion, config, on_progress=bar)
        stream = synthesizer.stream
        assert stream is not None
        sinks = _sinks(args, tts.sample_rate, stream.metadata, stack)
        for chunk in chunks:
            samples += len(chunk.samples)
            for sink in sinks:
                sink(chunk.samples)
    seconds = samples / tts.sample_rate
    return {
        "output": args.output,
        "seconds": round(seconds, 3),
        "sample_rate": tts.sample_rate,
        "rtf": round(stream.timings["total"] / seconds, 4),
        "codes": stream.run.codes,
        "mode": args.stream,
        "timings": {name: round(value, 4) for name, value in stream.timings.items()},
        "seed": stream.seed,
    }


def open_player(sample_rate: int, output: str) -> Player | None:
    """The loudspeaker; without one None, and a line on stderr that says why, and that the speech is in `output`."""
    from indextts2.audio.playback import Player

    try:
        return Player(sample_rate)
    except (AudioError, MissingExtraError) as error:
        say(f"not played, only written to {'standard output' if output == '-' else output}: {error}")
        return None


def _sinks(args: argparse.Namespace, sample_rate: int, metadata: dict[str, str], stack: ExitStack) -> list[Any]:
    """Where samples go while they are made: a growing file or standard output, the loudspeaker, or both.

    Without an output it is the loudspeaker; where there is none, the default output.
    """
    from indextts2.audio.writer import StreamingWavWriter

    sinks: list[Any] = []
    if args.play or args.output is None:
        player = open_player(sample_rate, args.output or DEFAULT_OUTPUT)
        if player is not None:
            sinks.append(stack.enter_context(player).write)
        elif args.output is None:
            args.output = DEFAULT_OUTPUT
    if args.output is not None:
        target = sys.stdout.buffer if args.output == "-" else args.output
        writer = StreamingWavWriter(target, sample_rate, args.subtype or "PCM_16", metadata)
        sinks.insert(0, stack.enter_context(writer).write)
    return sinks
