"""Show the dimensions and parameter counts of a model and the native kernels in use. Reads no weights."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts2.cli import options
from indextts2.cli.console import table
from indextts2.config import GenerationConfig

if TYPE_CHECKING:
    from indextts2.config import ModelConfig


def add_options(parser: argparse.ArgumentParser) -> None:
    options.add_model_location(parser)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")


def run(args: argparse.Namespace) -> int:
    from indextts2.checkpoints.layout import ModelDirectory, resolve_model
    from indextts2.native.library import native

    model, config_file = options.model_location(args)
    directory = ModelDirectory.open(resolve_model(model), config_file)
    counts = parameter_counts(directory.config)
    if args.json:
        values = {"model": str(directory.path), "parameters": counts, "config": asdict(directory.config)}
        print(json.dumps({**values, "native_kernels": native().status}))
    else:
        print(report(directory.path, directory.config, counts))
        print(f"\nnative kernels: {native().status}")
    return 0


def parameter_counts(config: ModelConfig) -> dict[str, int]:
    """Parameters that inference uses, by network. The networks are built empty: no memory, no weights.

    The official configuration does not name the inner widths of the latent projection: without them it is left out.
    """
    from indextts2.checkpoints.modules import build_empty
    from indextts2.checkpoints.official import MODULES

    names = [n for n in MODULES if n != "latent_projection" or config.s2mel.latent_projection is not None]
    return {name: sum(p.numel() for p in build_empty(name, config).parameters()) for name in names}


def report(path: Path, config: ModelConfig, counts: dict[str, int]) -> str:
    """Two tables: sizes, then parameters."""
    total = sum(counts.values())
    parameters = [[name, f"{n:,}", f"{n * 4 / 1e6:,.1f}"] for name, n in [*counts.items(), ("total", total)]]
    return "\n".join(
        [
            f"model: {path}",
            f"version: {config.version}",
            "",
            table(dimensions(config), ["dimension", "value"]),
            "",
            table(parameters, ["network", "parameters", "MB in float32"]),
        ]
    )


def dimensions(config: ModelConfig) -> list[list[str]]:
    """The sizes a reader wants first."""
    gpt, s2mel, codec = config.gpt, config.s2mel, config.semantic_codec
    decoding = config.generation or GenerationConfig()
    rows: list[tuple[str, Any]] = [
        ("sample rate (Hz)", s2mel.mel.sample_rate),
        ("mel bands, hop (samples)", f"{s2mel.mel.n_mels}, {s2mel.mel.hop_length}"),
        ("text tokens, longest text", f"{gpt.number_text_tokens}, {gpt.max_text_tokens}"),
        ("tokenizer", config.tokenizer),
        ("semantic codes", codec.codebook_size),
        ("semantic features", codec.hidden_size),
        ("w2v-BERT layers used", config.semantic_output_layer),
        ("GPT width, layers, heads", f"{gpt.model_dim}, {gpt.layers}, {gpt.heads}"),
        ("longest speech (codes)", gpt.max_mel_tokens),
        ("speaker latents", gpt.condition_latents),
        ("speaker style", s2mel.style_dim),
        ("DiT width, depth, heads", f"{s2mel.dit.hidden_dim}, {s2mel.dit.depth}, {s2mel.dit.num_heads}"),
        ("WaveNet width, layers", f"{s2mel.wavenet.hidden_dim}, {s2mel.wavenet.num_layers}"),
        ("flow steps, guidance", f"{s2mel.steps}, {s2mel.cfg_rate}"),
        ("sampling: temperature, top-k, top-p", f"{decoding.temperature}, {decoding.top_k}, {decoding.top_p}"),
        ("beams, repetition penalty", f"{decoding.num_beams}, {decoding.repetition_penalty}"),
        ("emotion rows", sum(config.emo_num)),
    ]
    if config.bigvgan is not None:
        rows.append(("BigVGAN channels", config.bigvgan.upsample_initial_channel))
    return [[name, str(value)] for name, value in rows]
