"""Writing a model directory in the converted form: from the official layout, or from modules that were trained.

Only what inference uses is written, weight norm folded. The directory appears complete or not at all.
"""

from __future__ import annotations

import hashlib
import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import nn

from indextts2.checkpoints.config_files import dump_model_config
from indextts2.checkpoints.converted import CONSTANTS, FileRecord, Manifest, file_sha256
from indextts2.checkpoints.keys import plan_keys
from indextts2.checkpoints.layout import CONFIG_FILE, MANIFEST_FILE, ModelDirectory, resolve_model
from indextts2.checkpoints.loading import Reader, fingerprint, open_reader, planned_tensors
from indextts2.checkpoints.modules import build_empty, complete_config
from indextts2.checkpoints.official import Stored
from indextts2.config import ModelConfig
from indextts2.errors import CheckpointError, UsageError

SHARD_BYTES = 2 * 1024**3
TEXT_HEAD = "text_head."
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class ConvertProgress:
    """`done` of `total` steps; `what` names the step that begins."""

    what: str
    done: int
    total: int


OnProgress = Callable[[ConvertProgress], None]


def convert(
    directory: str | Path | ModelDirectory,
    out: str | Path,
    dtype: torch.dtype | None = None,
    *,
    keep_unused: bool = False,
    keep_text_head: bool = False,
    on_progress: OnProgress | None = None,
) -> Path:
    """Convert a model directory into safetensors with a manifest.

    Args:
        directory: what to convert; a converted directory may be converted again, into another dtype.
        out: directory to create; it must not exist or must be empty.
        dtype: how floating point tensors are stored; None keeps float32, from which equal modules are loaded.
        keep_unused: also write the tensors that inference does not use, under their own names.
        keep_text_head: also write the text head of the GPT, which fine-tuning needs.
        on_progress: called before each step.

    Raises:
        CheckpointError: the source is not complete and correct, or `out` is in use.
        UsageError: `dtype` is not floating point.
    """
    if not isinstance(directory, ModelDirectory):
        directory = ModelDirectory.open(resolve_model(directory))
    if dtype is not None and not dtype.is_floating_point:
        raise UsageError(f"weights cannot be stored as {dtype}; choose a floating point dtype")
    reader = open_reader(directory)
    config = complete_config(directory.config, reader.module("latent_projection").tensors)

    def keep(module: str, key: str) -> bool:
        return keep_unused or (keep_text_head and module == "gpt" and key.startswith(TEXT_HEAD))

    report = _reporter(on_progress, len(reader.modules) + 1)
    tensors: Tensors = {}
    for name in reader.modules:
        report(name)
        tensors |= _module_tensors(name, config, reader.module(name), keep)
    tensors |= {f"{CONSTANTS}.{name}": tensor for name, tensor in reader.constants().items()}
    source = {"layout": directory.layout.value, "version": config.version, "dtype": str(dtype or torch.float32)}
    report("writing")
    return write_converted(
        out, config, tensors, dtype=dtype, source=source, copies=_copies(directory), modules=reader.modules,
        fingerprint=_fingerprint(reader, dtype),
    )  # fmt: skip


def save_modules(
    out: str | Path,
    config: ModelConfig,
    modules: Mapping[str, nn.Module],
    constants: Mapping[str, torch.Tensor],
    *,
    dtype: torch.dtype | None = None,
    source: Mapping[str, Any] | None = None,
    copies: Mapping[str, Path] | None = None,
) -> Path:
    """Write trained modules as a converted model directory.

    Args:
        out: directory to create; it must not exist or must be empty.
        config: complete configuration, with all sections.
        modules: by the names of `MODULES`; a model may lack some.
        constants: `mean`, `var`, `emotion_matrix`, `speaker_matrix`.
        dtype: how floating point tensors are stored; None keeps their own.
        source: plain words and numbers for the manifest, e.g. training data and steps.
        copies: further files by their name in the directory, e.g. the tokenizer.

    Raises:
        CheckpointError: `out` is in use.
    """
    tensors = {f"{name}.{key}": t for name, module in modules.items() for key, t in module.state_dict().items()}
    tensors |= {f"{CONSTANTS}.{name}": tensor for name, tensor in constants.items()}
    return write_converted(out, config, tensors, dtype=dtype, source=source or {}, copies=copies or {},
                           modules=tuple(modules))  # fmt: skip


def write_converted(
    out: str | Path,
    config: ModelConfig,
    tensors: Tensors,
    *,
    modules: tuple[str, ...],
    dtype: torch.dtype | None,
    source: Mapping[str, Any],
    copies: Mapping[str, Path],
    fingerprint: str | None = None,
) -> Path:
    """Write tensors named ``<module>.<parameter>`` with configuration and manifest; atomic.

    Without a `fingerprint` it is made from the hashes of the files.
    """
    # The few constants stay exact: they cost nothing.
    stored = {name: _stored(t, None if name.startswith(f"{CONSTANTS}.") else dtype) for name, t in tensors.items()}
    with _atomic_directory(Path(out)) as folder:
        counts = {name: len(shard) for name, shard in _shards(stored)}
        for name, shard in _shards(stored):
            save_file(shard, folder / name, metadata={"format": "pt"})
            (folder / name).chmod(0o644)  # the library makes it readable for its owner only
        mapping = dump_model_config(config)
        (folder / CONFIG_FILE).write_text(yaml.safe_dump(mapping, sort_keys=False, allow_unicode=True), "utf-8")
        for name, path in copies.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, folder / name)
        names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        files = {name: _record(folder / name, counts.get(name)) for name in names}
        made = fingerprint or _fingerprint_of(files)
        manifest = Manifest(made, modules, files, dict(source))
        (folder / MANIFEST_FILE).write_text(manifest.to_json(), "utf-8")
    return Path(out)


def _module_tensors(name: str, config: ModelConfig, stored: Stored, keep: Callable[[str, str], bool]) -> Tensors:
    """Used tensors of a module, folded, in float32, and those unused ones that `keep` asks for."""
    plan = plan_keys(build_empty(name, config), {k: tuple(t.shape) for k, t in stored.tensors.items()}, stored.file)
    values = planned_tensors(plan, stored, torch.float32)
    values |= {key: stored.tensors[key] for key in plan.dropped if keep(name, key)}
    return {f"{name}.{key}": tensor for key, tensor in values.items()}


def _copies(directory: ModelDirectory) -> dict[str, Path]:
    """The tokenizer and the model that reads emotion from words, if they are there."""
    files = directory.config.files
    copies: dict[str, Path] = {}
    if (tokenizer := directory.tokenizer_file) is not None:
        copies[files.bpe_model] = tokenizer
    if (emotion_text := directory.emotion_text_directory) is not None:
        inner = (path for path in sorted(emotion_text.rglob("*")) if path.is_file())
        copies |= {(Path(files.qwen_emo_path) / path.relative_to(emotion_text)).as_posix(): path for path in inner}
    return copies


def _fingerprint(reader: Reader, dtype: torch.dtype | None) -> str | None:
    """The source's own when the values stay the same."""
    return fingerprint(reader) if dtype in (None, torch.float32) else None


def _fingerprint_of(files: Mapping[str, FileRecord]) -> str:
    weights = "".join(record.sha256 for name, record in sorted(files.items()) if record.tensors is not None)
    return hashlib.sha256(weights.encode()).hexdigest()[:32]


def _stored(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    tensor = tensor.detach().cpu()
    if dtype is not None and tensor.is_floating_point():
        tensor = tensor.to(dtype)
    return tensor.contiguous()


def _record(path: Path, tensors: int | None) -> FileRecord:
    return FileRecord(path.stat().st_size, file_sha256(path), tensors)


def _shards(tensors: Tensors) -> Iterator[tuple[str, Tensors]]:
    """Consecutive tensors of at most SHARD_BYTES together (a larger one alone), with the names of their files."""
    shards: list[Tensors] = [{}]
    used = 0
    for name, tensor in tensors.items():
        if used + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            used = 0
        shards[-1][name] = tensor
        used += tensor.nbytes
    for index, shard in enumerate(shards, start=1):
        single = len(shards) == 1
        yield ("model.safetensors" if single else f"model-{index:05d}-of-{len(shards):05d}.safetensors"), shard


def _reporter(on_progress: OnProgress | None, total: int) -> Callable[[str], None]:
    steps = itertools.count()

    def report(what: str) -> None:
        done = next(steps)
        if on_progress is not None:
            on_progress(ConvertProgress(what, done, total))

    return report


@contextmanager
def _atomic_directory(out: Path) -> Iterator[Path]:
    """A temporary directory beside `out` that takes its name when the block succeeds and vanishes when it does not."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists and is not empty; choose another directory or remove it")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(out)  # replaces an empty directory
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
