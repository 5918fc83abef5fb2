"""Options that several commands share, and how they become library values."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from indextts2.config import GenerationConfig, InferenceConfig
from indextts2.errors import TextError, UsageError

if TYPE_CHECKING:
    from indextts2.inference.pipeline import EmotionInput, IndexTTS2

DEFAULT_CONFIG = Path("checkpoints/config.yaml")
MAX_TEXT_BYTES = 4 << 20


def number(text: str) -> float:
    """A finite number, for argparse."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return value


def add_model_location(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Options that say which model directory is meant."""
    group = parser.add_argument_group("model")
    group.add_argument("--model", metavar="DIR|NAME", help="model directory, or the name of an installed model")
    group.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        help=f"configuration; its directory is the model directory unless --model says otherwise "
        f"[{DEFAULT_CONFIG} if it exists]",
    )
    return group


def add_device_options(parser: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """Options that say where and in which precision a model runs."""
    parser.add_argument("--cpu", action="store_true", help="the same as --device cpu")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, xpu, mps [the best one present]")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="precision of the GPT; all else stays float32 [%(default)s]",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model is loaded, where and how."""
    add_device_options(add_model_location(parser))


def device(args: argparse.Namespace) -> str | None:
    """The device that the options name; None is the best one present."""
    return "cpu" if args.cpu else args.device


def add_text_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("text")
    one = group.add_mutually_exclusive_group(required=True)
    one.add_argument("-t", "--text", help="what to say; - reads standard input")
    one.add_argument("--text-file", type=Path, metavar="FILE", help="a UTF-8 text file; - reads standard input")


def add_emotion_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("emotion (at most one kind; none: as in the speaker's audio)")
    one = group.add_mutually_exclusive_group()
    one.add_argument("--emotion-audio", type=Path, metavar="FILE", help="speak with the emotion of this recording")
    one.add_argument(
        "--emotion-vector",
        metavar="N,N,…",
        help="eight weights: happy, angry, sad, afraid, disgusted, melancholic, surprised, calm",
    )
    one.add_argument("--emotion", metavar="NAME:W,…", help="weights by name, for example happy:0.7,sad:0.2")
    one.add_argument("--emotion-text", metavar="TEXT", help="describe the emotion in words (needs the Qwen model)")
    group.add_argument("--emotion-alpha", type=number, default=1.0, metavar="A", help="strength of it [%(default)s]")


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    add = group.add_argument
    add("--temperature", type=number, default=0.8, help="randomness of the codes [%(default)s]")
    add("--top-k", type=int, default=50, help="draw among the k likeliest codes; 0 is off [%(default)s]")
    add("--top-p", type=number, default=0.95, help="draw among the likeliest codes of this mass [%(default)s]")
    add("--num-beams", type=int, default=3, help="beams of the search [%(default)s]")
    add("--repetition-penalty", type=number, default=10.0, help="divides the score of codes seen before [%(default)s]")
    add("--length-penalty", type=number, default=0.0, help="exponent of the length in beam scores [%(default)s]")
    add("--greedy", action="store_true", help="always take the likeliest code")
    add("--seed", type=int, help="the same seed gives the same speech [random, printed]")
    add("--max-tokens", type=int, default=120, help="text tokens per segment [%(default)s]")
    add("--max-codes", type=int, default=1500, help="semantic codes per segment, 50 are a second [%(default)s]")
    add("--steps", type=int, help="steps of the flow [the model's own, 25 for the official one]")
    add("--cfg-rate", type=number, help="guidance of the flow [the model's own, 0.7 for the official one]")
    add("--duration-factor", type=number, default=1.0, help="0.5 to 2.0; stretches the speech [%(default)s]")
    add("--target-seconds", type=number, help="make the whole result last this long")
    add("--interval-silence", type=int, default=200, metavar="MS", help="pause between segments [%(default)s]")


def inference_config(args: argparse.Namespace) -> InferenceConfig:
    """The options of `add_generation_options` as a checked InferenceConfig."""
    generation = GenerationConfig(
        do_sample=not args.greedy,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        num_beams=args.num_beams,
        repetition_penalty=args.repetition_penalty,
        length_penalty=args.length_penalty,
        max_mel_tokens=args.max_codes,
    )
    return InferenceConfig(
        generation=generation,
        max_text_tokens_per_segment=args.max_tokens,
        interval_silence_ms=args.interval_silence,
        steps=args.steps,
        cfg_rate=args.cfg_rate,
        duration_factor=args.duration_factor,
        target_seconds=args.target_seconds,
        seed=args.seed,
    )


def emotion(args: argparse.Namespace) -> EmotionInput:
    """The options of `add_emotion_options` as a library value."""
    from indextts2.inference.emotion import EmotionAudio, EmotionVector, EmotionWords
    from indextts2.models.emotion.vector import parse_emotion_names

    if args.emotion_audio is not None:
        return EmotionAudio(args.emotion_audio, args.emotion_alpha)
    if args.emotion_vector is not None:
        return EmotionVector(tuple(_numbers(args.emotion_vector)), args.emotion_alpha)
    if args.emotion is not None:
        return EmotionVector(tuple(parse_emotion_names(args.emotion)), args.emotion_alpha)
    if args.emotion_text is not None:
        return EmotionWords(args.emotion_text, args.emotion_alpha)
    if args.emotion_alpha != 1.0:
        raise UsageError(
            "--emotion-alpha scales an emotion, but none is given; add --emotion, --emotion-vector, "
            "--emotion-audio or --emotion-text"
        )
    return None


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.replace("[", "").replace("]", "").split(",")]
    except ValueError as error:
        raise UsageError(f"--emotion-vector takes eight numbers with commas between them, not {text!r}") from error


def read_text(args: argparse.Namespace) -> str:
    """The text that the options name.

    Raises:
        TextError: the file cannot be read, is too large or is not UTF-8.
    """
    if args.text is not None and args.text != "-":
        return str(args.text)
    path = args.text_file
    name = "standard input" if path is None or str(path) == "-" else str(path)
    try:
        data = sys.stdin.buffer.read(MAX_TEXT_BYTES + 1) if name == "standard input" else path.read_bytes()
        if len(data) > MAX_TEXT_BYTES:
            raise TextError(f"{name} holds more than {MAX_TEXT_BYTES >> 20} MiB of text; split it")
        return data.decode("utf-8-sig")
    except OSError as error:
        raise TextError(f"cannot read {name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise TextError(f"{name} is not UTF-8 text (byte {error.start}); convert it first") from error


def model_location(args: argparse.Namespace) -> tuple[str | None, Path | None]:
    """Which model and configuration the options mean: --model, else the directory of --config, else
    `checkpoints/` if it is there, else None, the embedded voice."""
    config = args.config
    if args.model is not None:
        return args.model, config
    if config is None and DEFAULT_CONFIG.exists():
        config = DEFAULT_CONFIG
    if config is not None:
        return str(config.parent), config
    return None, None


def load_tts(args: argparse.Namespace) -> IndexTTS2:
    """The model that the options name, with its weights."""
    from indextts2.inference.pipeline import IndexTTS2

    model, config = model_location(args)
    return IndexTTS2.from_pretrained(model, config=config, device=device(args), dtype=args.dtype)
