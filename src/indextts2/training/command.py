"""The recipe as a command: prepare the corpus, train a stage and go on with it, package, evaluate."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import logging
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from indextts2.errors import UsageError

if TYPE_CHECKING:
    from indextts2.training.evaluate import EvaluationConfig
    from indextts2.training.runner import RunConfig

STAGES = ("semantic", "codec", "speaker", "pitch", "vocoder", "s2mel", "gpt")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    add = parser.add_argument
    add(
        "stage",
        choices=("prepare", "listen", *STAGES, "latents", "copies", "package", "evaluate", "finetune"),
        help="prepare the corpus, leave out clips that a recogniser misreads, train a stage, write the GPT's latents "
        "and copies of the clips in other voices and moods for a longer run of s2mel, write the model, judge it, or "
        "fine-tune the GPT of a model",
    )
    add("--work", type=Path, required=True, metavar="DIR", help="holds data/ and one folder per stage")
    add("--corpus", type=Path, metavar="DIR", help="prepare: folder with manifest.jsonl and the clips")
    add("--output", metavar="NAME", help="folder of this run instead of WORK/STAGE; package: model directory")
    add("--model", metavar="DIR|NAME", help="finetune: the model to adapt; evaluate: instead of the embedded voice")
    add("--manifest", type=Path, metavar="FILE", help="finetune: JSON Lines with path, text and speaker")
    add("--rank", type=int, default=8, help="finetune: rank of the adapters [%(default)s]")
    add("--start-from", metavar="DIR", help="folder of another run whose weights this one starts from")
    add("--minutes", type=float, help="length of the run; it can be stopped earlier and goes on when called again")
    add("--steps", type=int, help="length of the run in steps")
    add("--learning-rate", type=float, help="highest learning rate")
    add("--optimizer", choices=("adamw", "muon"), help="muon: for the matrices of hidden layers, AdamW for the rest")
    add("--threads", type=int, help="threads of torch")
    add("--seed", type=int, help="seed of the run")
    add("--precision", choices=("bfloat16", "float32"), help="of the forward and backward pass")
    add("--device", help="cpu, cuda")
    add("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the stage, such as batch_size=64")
    judging = parser.add_argument_group("evaluate, listen")
    add = judging.add_argument
    add("--sentences", type=Path, metavar="FILE", help="text file with one sentence a line, for the way `speech`")
    add("--references", metavar="DIR", help="folder with more reference recordings, for the way `speech`")
    add("--ways", nargs="+", metavar="WAY", help="recording, vocoder, codes, speech (all by default)")
    add(
        "--whisper", default="base", metavar="MODEL", help="name or folder; `packaged:DIR` joins the packaged one there"
    )
    add("--stops", type=Path, metavar="FILE", help="instead: decode each line and count run-ons and empty results")
    add("--emotions", type=int, metavar="N", help="instead: pitch, rate and level of N sentences for each emotion")
    add("--save-audio", action="store_true", help="keep the audio beside the report")


def run(options: argparse.Namespace) -> int:
    """Do what the arguments say; figures of a stage's evaluation go to standard output as JSON.

    Raises:
        IndexTTS2Error: something is missing or wrong.
    """
    logging.getLogger().setLevel(logging.INFO)
    if options.stage == "prepare":
        _prepare(options)
    elif options.stage == "listen":
        _listen(options)
    elif options.stage == "latents":
        _latents(options)
    elif options.stage == "copies":
        _copies(options)
    elif options.stage == "package":
        _package(options)
    elif options.stage == "evaluate":
        _evaluate(options)
    elif options.stage == "finetune":
        _finetune(options)
    else:
        from indextts2.training.runner import run_stage

        module = importlib.import_module(f"indextts2.training.{options.stage}")
        stage, default = module.make(options.work, stage_changes(options.set))
        figures = run_stage(stage, run_config(default, options))
        sys.stdout.write(json.dumps(figures) + "\n")
    return 0


def stage_changes(pairs: list[str]) -> dict[str, Any]:
    """Fields of a stage's configuration from ``name=value``; the value is read as YAML.

    Raises:
        UsageError: a pair has no ``=``.
    """
    import yaml

    changes = {}
    for pair in pairs:
        name, mark, value = pair.partition("=")
        if not mark:
            raise UsageError(f"--set wants NAME=VALUE, not {pair!r}")
        changes[name] = yaml.safe_load(value)
    return changes


def run_config(default: RunConfig, options: argparse.Namespace) -> RunConfig:
    """The stage's default run with the options that were given."""
    names = (
        "output", "minutes", "steps", "learning_rate", "optimizer", "threads", "seed", "precision", "device",
        "start_from",
    )  # fmt: skip
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return dataclasses.replace(default, **given)


def _prepare(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from indextts2.training.data import prepare_corpus

    if options.corpus is None:
        raise UsageError("prepare needs --corpus DIR, the folder with manifest.jsonl")
    prepare_corpus(options.corpus, options.work / "data", tqdm)


def _listen(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from indextts2.training.data import Corpus
    from indextts2.training.judges import Transcriber
    from indextts2.training.listening import listen

    transcriber = Transcriber(_whisper(options.whisper), options.threads or 2)
    sys.stdout.write(json.dumps(listen(Corpus(options.work / "data"), transcriber, tqdm)) + "\n")


def _whisper(name: str) -> str:
    """Name or folder for the judge of words; ``packaged:DIR`` joins the packaged model there first."""
    from indextts2.training.judges import packaged_whisper

    folder = name.removeprefix("packaged:")
    return name if folder == name else str(packaged_whisper(Path(folder)))


def _latents(options: argparse.Namespace) -> None:
    from indextts2.training.gpt import load_stage, write_latents

    write_latents(load_stage(options.work, options.device or "cpu"))


def _copies(options: argparse.Namespace) -> None:
    from indextts2.training.copies import write_copies

    write_copies(options.work)


def _package(options: argparse.Namespace) -> None:
    from indextts2.training.package import package

    if options.output is None:
        raise UsageError("package needs --output DIR, the model directory to write")
    package(options.work, Path(options.output))


def _evaluate(options: argparse.Namespace) -> None:
    from indextts2.training.evaluate import WAYS, EvaluationConfig

    sentences = () if options.sentences is None else tuple(_lines(options.sentences))
    config = EvaluationConfig(
        output=options.output or str(options.work / "evaluation"),
        model=options.model,
        data=str(options.work / "data"),
        references=options.references,
        sentences=sentences,
        ways=tuple(options.ways or (way for way in WAYS if way != "speech" or sentences)),
        whisper=_whisper(options.whisper),
        seed=1 if options.seed is None else options.seed,
        save_audio=options.save_audio,
    )
    changes = stage_changes(options.set)
    known = {field.name for field in dataclasses.fields(config)}
    if unknown := sorted(set(changes) - known):
        raise UsageError(f"an evaluation has no field {unknown[0]!r}; it has {', '.join(sorted(known))}")
    config = dataclasses.replace(config, **changes)
    for line in _figures(config, options):
        sys.stdout.write(json.dumps(line) + "\n")


def _figures(config: EvaluationConfig, options: argparse.Namespace) -> Iterable[dict[str, Any]]:
    """Lines of the evaluation that was asked for."""
    from indextts2.training.evaluate import Evaluation, count_stops, run_evaluation
    from indextts2.training.prosody import emotion_report

    if options.stops is None and options.emotions is None:
        return run_evaluation(config)
    evaluation = Evaluation(config)
    references = list(evaluation.references.values())
    if not references:
        raise UsageError("there is no reference: give --work with a prepared corpus, or --references DIR")
    if options.stops is not None:
        return [count_stops(evaluation.tts, references, _lines(options.stops))]
    sentences = config.sentences[: options.emotions]
    if not sentences:
        raise UsageError("--emotions needs --sentences FILE and at least one sentence")
    return emotion_report(evaluation.tts, references, sentences, config.inference, config.seed)


def _lines(path: Path) -> list[str]:
    """Lines of a text file that are not empty."""
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _finetune(options: argparse.Namespace) -> None:
    from tqdm import tqdm

    from indextts2.inference.pipeline import IndexTTS2
    from indextts2.training import finetune
    from indextts2.training.runner import load_trained, run_stage

    if options.manifest is None:
        raise UsageError("finetune needs --manifest FILE")
    run = run_config(finetune.default_run(options.work), options)
    tts = IndexTTS2.from_pretrained(options.model, device=run.device)
    examples = finetune.encode(tts, options.manifest, tqdm)
    stage = finetune.FinetuneStage(tts, examples, finetune.FinetuneConfig(rank=options.rank))
    figures = run_stage(stage, run)
    stage.model.load_state_dict(load_trained(run.output))
    path = stage.adapter().save(Path(run.output) / finetune.ADAPTER_FILE)
    sys.stdout.write(json.dumps({**figures, "adapter": str(path)}) + "\n")
