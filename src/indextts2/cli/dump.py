"""Write golden data: every intermediate array of one real run, with all that is needed to replay it."""

from __future__ import annotations

import argparse
from pathlib import Path

from indextts2.cli import options
from indextts2.cli.console import say
from indextts2.config import ModelConfig
from indextts2.errors import UsageError
from indextts2.inference.named_voices import resolve_speaker


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_text_options(parser)
    parser.add_argument("-s", "--speaker", metavar="FILE", help="reference audio of 1 to 15 s")
    parser.add_argument("-o", "--output", type=Path, default=Path("golden"), metavar="DIR", help="[%(default)s]")
    parser.add_argument("--mock", action="store_true", help="write a seeded, model-free set that says it is one")
    options.add_model_options(parser)
    options.add_emotion_options(parser)
    options.add_generation_options(parser)


def run(args: argparse.Namespace) -> int:
    options.inference_config(args, ModelConfig())  # a wrong value is reported before weights are read
    text = options.read_text(args)
    if args.output.exists() and any(args.output.iterdir()):
        raise UsageError(f"{args.output} is not empty; name another folder or empty it")
    if args.mock:
        from indextts2.audio.writer import write_audio
        from indextts2.validation.mock import mock_golden_set

        golden = mock_golden_set(text, args.seed or 0)
        rate = golden.facts["speaker_sample_rate"]
    else:
        from indextts2.audio.writer import write_audio
        from indextts2.validation.record import record

        with options.load_tts(args) as tts:
            config = options.inference_config(args, tts.config)
            speaker = resolve_speaker(args.speaker)
            golden = record(tts, text, speaker, options.emotion(args), config)
            rate = tts.sample_rate
    golden.write(args.output)
    write_audio(args.output / "output" / "audio.wav", golden.arrays["output/audio"], rate)
    kind = "mock arrays" if args.mock else "arrays"
    say(f"{args.output}: {len(golden.arrays)} {kind}, seed {golden.facts['seed']}")
    return 0
