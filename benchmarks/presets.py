"""What each shortcut of the presets gains in time, and what it costs.

    python -m benchmarks.presets [--model DIR] [--speaker NAME …] [--texts FILE] [--repeats 3] [--threads N]
                                 [--whisper MODEL] [--similarity] [--json FILE]

Every speaker says every text with every setting. All settings of the flow start from the same codes and noise, so that
their mels can be compared frame by frame: "mel L1" is the mean absolute difference of natural-log mels to the exact
one, on the same frames. Settings take turns, and of each the best time counts; a total adds up decoding (seconds per
code, for the codes of the exact result), flow and vocoder. Rounded weights of the decoder are compared step by step
along the exact greedy codes: the cosine of the logits, and how often both would choose the same code.

With `--whisper` and `--similarity` (extra `evaluate`) each setting also speaks with codes of its own, and is judged.
The last line of the output is all figures as JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.clock import CLOCKS, Clock, add_clock, check_clock, seconds
from benchmarks.likeness import TEXTS, Judges
from benchmarks.machine import describe
from indextts2 import IndexTTS2, InferenceConfig, Voice
from indextts2.audio.loader import load_reference
from indextts2.cli.console import say, table
from indextts2.config import GenerationConfig, ResolvedConfig
from indextts2.errors import UsageError
from indextts2.inference import stages
from indextts2.inference.named_voices import named_voices, resolve_speaker
from indextts2.inference.progress import Run
from indextts2.models.dense import uses_onednn
from indextts2.models.gpt.cache import Lane
from indextts2.models.gpt.quantised import check_weights
from indextts2.presets import PRESETS
from indextts2.training.judges import word_error_rate
from indextts2.types import Waveform

# Name -> part of the model's own flow steps, and the other options.
SETTINGS: dict[str, tuple[float, dict[str, Any]]] = {
    "exact": (1.0, {}),
    "steps / 2": (0.5, {}),
    "steps / 2, sway -0.5": (0.5, {"sway": -0.5}),
    "steps / 3, sway -0.75": (0.32, {"sway": -0.75}),
    "steps / 2, ab2": (0.5, {"solver": "ab2"}),
    "steps / 4, midpoint": (0.25, {"solver": "midpoint"}),
    "steps / 4, heun, sway -1": (0.25, {"solver": "heun", "sway": -1.0}),
    "guidance until 0.5": (1.0, {"guidance_until": 0.5}),
    "guidance until 0.3": (1.0, {"guidance_until": 0.3}),
    "5 s of prompt": (1.0, {"prompt_seconds": 5.0}),
    "bfloat16 flow": (1.0, {"flow_dtype": "bfloat16"}),
    "int8 decoding": (1.0, {"gpt_weights": "int8"}),
    "int4 decoding": (1.0, {"gpt_weights": "int4"}),
    **{name: (1.0, {"preset": name}) for name in PRESETS if name != "exact"},
}
ROUNDED = ("int8", "int4")
COLUMNS = ["setting", "decode, ms/code", "flow, s", "total, s", "x flow", "x total", "mel L1", "mel rel. L2"]


@dataclass(frozen=True)
class Utterance:
    """One text of one speaker, with what the exact setting made of its first segment."""

    reference: Waveform
    voice: Voice
    emotion: torch.Tensor
    text: str
    segment: stages.TextSegment
    codes: stages.Codes
    condition: torch.Tensor
    noise: torch.Tensor


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Measure all settings, print the tables and the JSON, and return the figures."""
    args = _parse(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    judges = Judges(args.whisper, args.similarity, torch.get_num_threads())
    with IndexTTS2.from_pretrained(args.model, device="cpu") as tts:
        configs = {name: config_of(name, tts, args) for name in args.setting}
        kinds = [kind for kind in ROUNDED if _has_weights(tts, kind)]
        configs = {name: c for name, c in configs.items() if c.gpt_weights not in ROUNDED or c.gpt_weights in kinds}
        utterances = prepare(tts, args, configs["exact"])
        figures = {
            "benchmark": "presets",
            **describe(tts.models.device, tts.models.gpt_dtype),
            "clock": args.clock,
            "onednn": uses_onednn(),
            "model": str(tts.directory.path.name if tts.directory else args.model),
            "utterances": len(utterances),
            "settings": measure(tts, utterances, configs, args.repeats, CLOCKS[args.clock]),
            "rounding": {kind: compare_logits(tts, utterances, kind) for kind in kinds},
        }
        if judges.transcriber is not None or judges.speakers is not None:
            for name, config in configs.items():
                figures["settings"][name] |= judge(tts, utterances, config, judges)
    _print(figures)
    line = json.dumps(figures)
    print(line)
    if args.json:
        with args.json.open("a") as file:
            file.write(line + "\n")
    return figures


def config_of(name: str, tts: IndexTTS2, args: argparse.Namespace) -> ResolvedConfig:
    """The options of a setting for this model."""
    share, options = SETTINGS[name]
    own = dataclasses.replace(PRESETS["exact"], steps_share=share).steps(tts.config.s2mel.steps)
    steps = None if "preset" in options else own
    generation = tts.config.generation or GenerationConfig()
    if args.max_codes:
        least = min(generation.min_new_tokens, args.max_codes)
        generation = dataclasses.replace(generation, max_mel_tokens=args.max_codes, min_new_tokens=least)
    return InferenceConfig(generation, seed=args.seed, steps=steps, **options).resolved(tts.config)


def _has_weights(tts: IndexTTS2, kind: str) -> bool:
    try:
        check_weights(kind, tts.models.device, tts.config.gpt.model_dim)
    except UsageError as error:
        say(f"left out: {error}")
        return False
    return True


@torch.inference_mode()
def prepare(tts: IndexTTS2, args: argparse.Namespace, config: ResolvedConfig) -> list[Utterance]:
    """Voices, exact codes and noise of all speakers and texts."""
    texts = TEXTS if args.texts is None else args.texts.read_text(encoding="utf-8").splitlines()
    utterances = []
    for speaker in args.speaker or list(named_voices()) or [None]:
        reference = load_reference(resolve_speaker(speaker))
        voice = tts.voice(reference)
        emotion = tts.emotion_vector(voice, None, "")
        for text in filter(str.strip, texts):
            segment = tts.text_segments(text, config)[0]
            generator = torch.Generator().manual_seed(config.seed)
            codes = stages.segment_to_codes(
                tts.models, voice.speaker_latents, emotion, segment, config, generator, Run()
            )
            frames = stages.target_frames(tts.models, codes.codes.shape[1])
            condition = stages.codes_to_condition(tts.models, codes, frames)
            noise = stages.draw_noise(tts.models, voice.prompt_mel.shape[-1] + frames, config, generator)
            utterances.append(Utterance(reference, voice, emotion, text, segment, codes, condition, noise))
    return utterances


@dataclass(frozen=True)
class Measured:
    """Seconds of one utterance by setting, per code by kind of weights, and of the vocoder; distances of the mels."""

    codes: int
    flow: dict[str, float]
    decode: dict[str, float]
    vocoder: float
    distances: dict[str, tuple[float, float]]


@torch.inference_mode()
def measure(
    tts: IndexTTS2, utterances: list[Utterance], configs: dict[str, ResolvedConfig], repeats: int, clock: Clock
) -> dict[str, dict[str, float]]:
    """Times and distances of every setting."""
    kinds = {name: stages.gpt_weights(tts.models, config.gpt_weights) for name, config in configs.items()}
    found = [measure_one(tts, one, configs, set(kinds.values()), repeats, clock) for one in utterances]
    rows = {name: _summary(found, name, kind) for name, kind in kinds.items()}
    exact = rows["exact"]
    for row in rows.values():
        for part in ("flow", "total"):
            row[f"{part}_speed"] = round(exact[f"{part}_seconds"] / row[f"{part}_seconds"], 3)
    return rows


def measure_one(
    tts: IndexTTS2, one: Utterance, configs: dict[str, ResolvedConfig], kinds: set[str], repeats: int, clock: Clock
) -> Measured:
    """All settings in turns; the first turn does not count."""
    mels: dict[str, torch.Tensor] = {}
    turns = []
    for _ in range(repeats + 1):
        flow = {
            name: seconds(lambda n=name: mels.update({n: flow_mel(tts, one, configs[n])}), clock) for name in configs
        }
        decode = {kind: time_decoding(tts, one, configs["exact"], kind, clock) for kind in kinds}
        turns.append((flow, decode, seconds(lambda: stages.mel_to_waveform(tts.models, mels["exact"]), clock)))
    flows, decodes, vocoders = zip(*turns[1:], strict=True)
    return Measured(
        one.codes.codes.shape[1],
        {name: min(flow[name] for flow in flows) for name in configs},
        {kind: min(decode[kind] for decode in decodes) for kind in kinds},
        min(vocoders),
        {name: distance(mels[name], mels["exact"]) for name in configs},
    )


def _summary(found: list[Measured], name: str, kind: str) -> dict[str, float]:
    flow = sum(one.flow[name] for one in found)
    decode = sum(one.decode[kind] * one.codes for one in found)
    l1, l2 = np.mean([one.distances[name] for one in found], axis=0)
    return {
        "decode_ms_per_code": round(1e3 * decode / sum(one.codes for one in found), 4),
        "flow_seconds": round(flow, 4),
        "total_seconds": round(flow + decode + sum(one.vocoder for one in found), 4),
        "mel_l1": round(float(l1), 5),
        "mel_relative_l2": round(float(l2), 5),
    }


def flow_mel(tts: IndexTTS2, one: Utterance, config: ResolvedConfig) -> torch.Tensor:
    """The mel that the setting makes of the exact codes and noise."""
    voice = one.voice
    return stages.condition_to_mel(
        tts.models, voice.prompt_condition, voice.prompt_mel, voice.style, one.condition, one.noise, config, Run()
    )


def time_decoding(tts: IndexTTS2, one: Utterance, config: ResolvedConfig, kind: str, clock: Clock) -> float:
    """Seconds per code, prefix and second pass included, with the weights of this kind."""
    options, found = dataclasses.replace(config, gpt_weights=kind), []

    def work() -> None:
        generator, latents = torch.Generator().manual_seed(config.seed), one.voice.speaker_latents
        codes = stages.segment_to_codes(tts.models, latents, one.emotion, one.segment, options, generator, Run())
        found.append(codes.codes.shape[1])

    return seconds(work, clock) / found[0]


def distance(mel: torch.Tensor, exact: torch.Tensor) -> tuple[float, float]:
    """Mean absolute difference, and the norm of the difference over that of the exact mel."""
    difference = mel - exact
    return float(difference.abs().mean()), float(difference.norm() / exact.norm())


@torch.inference_mode()
def compare_logits(tts: IndexTTS2, utterances: list[Utterance], kind: str, most_steps: int = 100) -> dict[str, float]:
    """Along the greedy codes of the exact weights: cosines of the logits, and how often the same code is best."""
    gpt, cosines, agreed = tts.models.gpt, [], []
    for one in utterances:
        conditioning = gpt.conditioning(one.voice.speaker_latents, one.emotion)
        prefix = gpt.prefix(conditioning.to(tts.models.gpt_dtype), one.segment.ids)
        caches = {weights: gpt.prefill(prefix, most_steps) for weights in ("full", kind)}
        code = int(gpt.logits(caches["full"].hidden).argmax())
        for step in range(min(most_steps, one.codes.codes.shape[1])):
            if code >= gpt.config.start_mel_token:
                break
            fed = torch.tensor([code]), torch.tensor([gpt.decode_position(step)])
            logits = {}
            for weights, prompt in caches.items():
                prompt.cache.reserve(1)
                states = gpt.step(*fed, [Lane(prompt.cache, 1)], weights)
                logits[weights] = gpt.logits(states, weights)[0]
            cosines.append(float(torch.cosine_similarity(logits["full"], logits[kind], dim=0)))
            code = int(logits["full"].argmax())
            agreed.append(code == int(logits[kind].argmax()))
    return {
        "steps": len(agreed),
        "cosine_mean": round(float(np.mean(cosines)), 6),
        "cosine_least": round(float(np.min(cosines)), 6),
        "greedy_agreement": round(float(np.mean(agreed)), 4),
    }


def judge(tts: IndexTTS2, utterances: list[Utterance], config: ResolvedConfig, judges: Judges) -> dict[str, float]:
    """What is heard and who, of whole results with codes of the setting's own."""
    heard, likeness = [], []
    for one in utterances:
        result = tts.infer(one.text, one.voice, config=config)
        if judges.transcriber is not None:
            heard.append(judges.transcriber.transcribe(result.samples, result.sample_rate))
        if judges.speakers is not None:
            own = judges.speakers.embed(one.reference.samples, one.reference.sample_rate)
            likeness.append(float(own @ judges.speakers.embed(result.samples, result.sample_rate)))
    found: dict[str, float] = {}
    if heard:
        found["word_error"] = round(word_error_rate([one.text for one in utterances], heard), 4)
    if likeness:
        found["similarity"] = round(float(np.mean(likeness)), 4)
    return found


def _print(figures: dict[str, Any]) -> None:
    judged = [name for name in ("word_error", "similarity") if name in figures["settings"]["exact"]]
    rows = [
        [
            name, f"{row['decode_ms_per_code']:.2f}", f"{row['flow_seconds']:.3f}", f"{row['total_seconds']:.3f}",
            f"{row['flow_speed']:.2f}", f"{row['total_speed']:.2f}", f"{row['mel_l1']:.4f}",
            f"{row['mel_relative_l2']:.4f}", *(f"{row[column]:.4f}" for column in judged),
        ]
        for name, row in figures["settings"].items()
    ]  # fmt: skip
    say(table(rows, [*COLUMNS, *(name.replace("_", " ") for name in judged)]))
    if figures["rounding"]:
        cells = [[kind, *map(str, row.values())] for kind, row in figures["rounding"].items()]
        say(table(cells, ["weights", "steps", "mean cosine", "least cosine", "same greedy code"]))


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="model directory or name [the embedded voice]")
    parser.add_argument("--speaker", action="append", default=[], metavar="VOICE",
                        help="recording, or name of a voice; may be given again [all named voices]")  # fmt: skip
    parser.add_argument("--texts", type=Path, metavar="FILE", help="one text a line [eight sentences]")
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="may be given again [all]")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--max-codes", type=int, help="[the model's own]")
    add_clock(parser)
    parser.add_argument("--whisper", metavar="MODEL",
                        help="also the word error: name or folder; `packaged:DIR`: that of the packages")  # fmt: skip
    parser.add_argument("--similarity", action="store_true", help="also the likeness of the speaker, by Resemblyzer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also append the JSON line to this file")
    args = parser.parse_args(argv)
    check_clock(parser, args)
    if args.repeats < 1:
        parser.error("--repeats must be at least 1")
    args.setting = list(dict.fromkeys(["exact", *(args.setting or SETTINGS)]))
    return args


if __name__ == "__main__":
    main()
