"""Options that several commands share, and how they become library values."""

from __future__ import annotations

import argparse
import dataclasses
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts2.config import GenerationConfig, InferenceConfig, ModelConfig
from indextts2.errors import TextError, UsageError
from indextts2.presets import FLOW_DTYPES, GPT_WEIGHTS, PRESETS, SOLVERS

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
    one = parser.add_mutually_exclusive_group()
    one.add_argument("--cpu", action="store_true", help="the same as --device cpu")
    one.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, xpu, mps [the best one present]")
    parser.add_argument(
        "--dtype",
        choices=["float32", "float16", "bfloat16"],
        default="float32",
        help="precision of the GPT; all else stays float32 [%(default)s]",
    )


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Options that say which model is loaded, where and how."""
    group = add_model_location(parser)
    group.add_argument("--lora", type=Path, metavar="FILE", help="a fine-tuned adapter for the GPT of this model")
    add_device_options(group)


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
    group.add_argument("--emotion-random", action="store_true", help="draw the rows of the emotion matrix at random")


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    official = GenerationConfig()
    group = parser.add_argument_group(
        "generation", "in brackets the defaults; a model may bring its own (the embedded voice does), see `info`"
    )

    def add(name: str, kind: Callable[[str], object], text: str) -> None:
        group.add_argument(name, type=kind, help=text, metavar="N")

    add("--temperature", number, f"randomness of the codes [{official.temperature}]")
    add("--top-k", int, f"draw among the k likeliest codes; 0 is off [{official.top_k}]")
    add("--top-p", number, f"draw among the likeliest codes of this mass [{official.top_p}]")
    add("--num-beams", int, f"beams of the search [{official.num_beams}]")
    add("--repetition-penalty", number, f"divides the score of codes seen before [{official.repetition_penalty}]")
    add("--length-penalty", number, f"exponent of the length in beam scores [{official.length_penalty}]")
    add("--max-codes", int, f"semantic codes per segment, 50 are a second [{official.max_mel_tokens}]")
    group.add_argument("--greedy", action="store_true", help="always take the likeliest code")
    add("--seed", int, "the same seed gives the same speech [random, printed]")
    add("--steps", int, "steps of the flow [25]")
    add("--cfg-rate", number, "guidance of the flow [0.7]")
    group = parser.add_argument_group("speed, at the price of exactness", "what is given here goes before the preset")
    add_preset_option(group)
    group.add_argument("--solver", choices=SOLVERS, help="of the flow; midpoint and heun cost two velocities a step")
    add("--sway", number, "-1 to 1; below 0 the steps of the flow lie closer together at its start")
    add("--guidance-until", number, "0 to 1, the time of the flow after which it is not guided")
    add("--prompt-seconds", number, "the flow sees so much of the end of the reference; 0 is all of it")
    group.add_argument("--flow-dtype", choices=FLOW_DTYPES, help="of the products in the flow; auto asks the processor")
    group.add_argument("--gpt-weights", choices=GPT_WEIGHTS, help="of decoding; auto is int8 on a CPU")
    group = parser.add_argument_group("text and time")
    add("--max-tokens", int, f"text tokens per segment [{InferenceConfig.max_text_tokens_per_segment}]")
    add("--duration-factor", number, f"0.5 to 2.0; stretches the speech [{InferenceConfig.duration_factor}]")
    add("--target-seconds", number, "make the whole result last this long")
    add("--interval-silence", int, f"milliseconds between segments [{InferenceConfig.interval_silence_ms}]")


def add_preset_option(group: argparse.ArgumentParser | argparse._ArgumentGroup) -> None:
    """`--preset`."""
    group.add_argument("--preset", choices=list(PRESETS), help="what may be left out [exact: nothing]")


def inference_config(args: argparse.Namespace, model: ModelConfig) -> InferenceConfig:
    """The options of `add_generation_options`; what was not given is as `model` wants it.

    Raises:
        ConfigError: a value is out of range.
    """

    def given(**names: str) -> dict[str, Any]:
        values = {field: getattr(args, option) for field, option in names.items()}
        return {field: value for field, value in values.items() if value is not None}

    generation = dataclasses.replace(
        model.generation or GenerationConfig(),
        **given(temperature="temperature", top_k="top_k", top_p="top_p", num_beams="num_beams",
                repetition_penalty="repetition_penalty", length_penalty="length_penalty",
                max_mel_tokens="max_codes"),
        **({"do_sample": False} if args.greedy else {}),
    )  # fmt: skip
    return InferenceConfig(
        generation=generation,
        **given(max_text_tokens_per_segment="max_tokens", interval_silence_ms="interval_silence", steps="steps",
                cfg_rate="cfg_rate", duration_factor="duration_factor", target_seconds="target_seconds", seed="seed",
                preset="preset", solver="solver", sway="sway", guidance_until="guidance_until",
                prompt_seconds="prompt_seconds", flow_dtype="flow_dtype", gpt_weights="gpt_weights"),
    )  # fmt: skip


def emotion(args: argparse.Namespace) -> EmotionInput:
    """The options of `add_emotion_options` as a library value."""
    from indextts2.inference.emotion import EmotionAudio, EmotionVector, EmotionWords
    from indextts2.models.emotion.vector import parse_emotion_vector

    if args.emotion_audio is not None:
        return EmotionAudio(args.emotion_audio, args.emotion_alpha)
    if args.emotion_vector is not None:
        return EmotionVector(parse_emotion_vector(args.emotion_vector), args.emotion_alpha, args.emotion_random)
    if args.emotion is not None:
        return EmotionVector(parse_emotion_vector(args.emotion), args.emotion_alpha, args.emotion_random)
    if args.emotion_text is not None:
        return EmotionWords(args.emotion_text, args.emotion_alpha, args.emotion_random)
    if args.emotion_alpha != 1.0:
        raise UsageError(
            "--emotion-alpha scales an emotion, but none is given; add --emotion, --emotion-vector, "
            "--emotion-audio or --emotion-text"
        )
    return None


def reads_standard_input(args: argparse.Namespace) -> bool:
    """Whether the text comes from standard input."""
    return args.text == "-" or (args.text_file is not None and str(args.text_file) == "-")


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
    """The model that the options name, with its weights. It is not warmed up: most commands need it once."""
    from indextts2.inference.pipeline import IndexTTS2

    model, config = model_location(args)
    tts = IndexTTS2.from_pretrained(model, config=config, device=device(args), dtype=args.dtype, warm_up=False)
    return tts if args.lora is None else tts.load_adapter(args.lora)
