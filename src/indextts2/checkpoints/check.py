"""`indextts2 check`: what is in a model directory and whether it can be loaded. Reports, never raises."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from indextts2.checkpoints.converted import FileRecord, check_size, file_sha256, read_manifest
from indextts2.checkpoints.devices import available_devices, choose_device, choose_dtype
from indextts2.checkpoints.keys import plan_keys
from indextts2.checkpoints.layout import (
    CONFIG_FILE,
    MANIFEST_FILE,
    Layout,
    ModelDirectory,
    detect_layout,
    find_file,
    inside,
    official_files,
    resolve_model,
)
from indextts2.checkpoints.loading import Reader, module_dtype, open_reader, read_constants
from indextts2.checkpoints.modules import build_empty, complete_config
from indextts2.checkpoints.pins import PINS, Pin, read_lock
from indextts2.config import FilesConfig, ModelConfig
from indextts2.errors import IndexTTS2Error

T = TypeVar("T")
MIB = 1024 * 1024


@dataclass(frozen=True)
class FileCheck:
    """One file.

    `status`: ok (hash as recorded), missing, absent (optional), changed (not as recorded), differs (not the published
    file, perhaps on purpose), unchecked (present, no hash known or asked for).
    """

    path: str
    status: str
    size: int | None = None
    sha256: str | None = None
    problem: str | None = None


@dataclass(frozen=True)
class ModuleCheck:
    """One network: tensors in the file, used parameters, keys dropped on purpose, memory of its weights."""

    name: str
    tensors: int = 0
    parameters: int = 0
    dropped: int = 0
    weight_bytes: int = 0
    problem: str | None = None


@dataclass(frozen=True)
class CheckReport:
    """Result of `check`. `ok` means that `load_models` would succeed."""

    directory: str
    layout: str | None = None
    version: float | None = None
    files: tuple[FileCheck, ...] = ()
    modules: tuple[ModuleCheck, ...] = ()
    problems: tuple[str, ...] = ()
    device: str | None = None
    devices: tuple[str, ...] = ()
    dtype: str | None = None
    weight_bytes: int = 0
    available_bytes: int | None = None
    ok: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        everything = [*(file.problem for file in self.files), *(module.problem for module in self.modules)]
        object.__setattr__(self, "ok", not self.problems and not any(everything))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values for JSON."""
        return asdict(self)

    def to_text(self) -> str:
        """The report as a table for people."""
        lines = [f"model      {self.directory}", f"layout     {self.layout or 'unknown'}, version {self.version}"]
        lines += ["", f"{'file':52} {'MiB':>9}  status"]
        lines += [_file_line(file) for file in self.files]
        lines += ["", f"{'module':20} {'tensors':>8} {'dropped':>8} {'parameters':>13} {'MiB':>9}  status"]
        lines += [_module_line(module) for module in self.modules]
        memory = f"{self.weight_bytes / MIB:.0f} MiB for weights"
        if self.available_bytes is not None:
            memory += f", {self.available_bytes / MIB:.0f} MiB of memory available"
        lines += ["", f"device     {self.device} (available: {', '.join(self.devices)}), GPT in {self.dtype}"]
        lines += [f"memory     {memory}"]
        lines += [f"problem    {problem}" for problem in self.problems]
        return "\n".join([*lines, "", "result     " + ("ok" if self.ok else "not usable")]) + "\n"


def check(
    directory: str | Path,
    *,
    config_path: str | Path | None = None,
    hash_files: bool = False,
    device: str | None = None,
    dtype: str | None = None,
) -> CheckReport:
    """Examine a model directory: files, hashes, keys and shapes, device and memory. Reads headers only.

    Args:
        directory: path or name of a model.
        config_path: a ``config.yaml`` that lies elsewhere.
        hash_files: also compute the SHA-256 of every file and compare it with the recorded one (slow).
        device: as for `load_models`.
        dtype: as for `load_models`.
    """
    problems: list[str] = []
    where = _attempt(lambda: resolve_model(directory), problems) if config_path is None else Path(directory)
    if where is None:
        return CheckReport(str(directory), problems=tuple(problems))
    target = _attempt(lambda: choose_device(device), problems)
    gpt_dtype = _attempt(lambda: choose_dtype(dtype, target), problems) if target is not None else None
    opened = _attempt(lambda: ModelDirectory.open(where, config_path), problems)
    files = _attempt(lambda: _check_files(where, opened, hash_files), problems) or ()
    modules: tuple[ModuleCheck, ...] = ()
    if opened is not None and gpt_dtype is not None:
        model = opened  # bound for the closure, known not to be None
        modules = _attempt(lambda: _check_modules(model, gpt_dtype, problems), problems) or ()
    return CheckReport(
        str(where), detect_layout(where).value, opened.config.version if opened else None, files, modules,
        tuple(problems), str(target), available_devices(), str(gpt_dtype).removeprefix("torch."),
        sum(module.weight_bytes for module in modules), _available_bytes(),
    )  # fmt: skip


def _attempt(action: Callable[[], T], problems: list[str]) -> T | None:
    """The result of `action`, or None with its error noted."""
    try:
        return action()
    except (IndexTTS2Error, OSError) as error:
        problems.append(str(error))
        return None


def _check_files(where: Path, opened: ModelDirectory | None, hash_files: bool) -> tuple[FileCheck, ...]:
    if detect_layout(where) is Layout.CONVERTED:
        records = read_manifest(where).files
        manifest = FileCheck(MANIFEST_FILE, "ok", (where / MANIFEST_FILE).stat().st_size)
        return (manifest, *(_check_recorded(where, name, record, hash_files) for name, record in records.items()))
    names = opened.config.files if opened else FilesConfig()
    lock = read_lock(where)
    checks = []
    for entry in official_files(names):
        path = opened.config_path if opened and entry.path == CONFIG_FILE else find_file(where, entry)
        if path is None or not path.is_file():
            problem = f"{entry.path} is missing" if entry.required else None
            checks.append(FileCheck(entry.path, "missing" if entry.required else "absent", problem=problem))
            continue
        locked, pin = lock.get(entry.path), PINS.get((entry.repository, entry.repository_path))
        if locked is not None:
            checks.append(_check_hash(path, entry.path, locked.sha256, hash_files))
        else:
            checks.append(_compare_with_pin(_check_hash(path, entry.path, None, hash_files), pin))
    return tuple(checks)


def _compare_with_pin(file: FileCheck, pin: Pin | None) -> FileCheck:
    """A file that nothing promised may be another model's own: then it differs, which is no problem."""
    if pin is None or file.sha256 is None:
        return file
    return replace(file, status="ok" if file.sha256 == pin.sha256 else "differs")


def _check_recorded(where: Path, name: str, record: FileRecord, hash_files: bool) -> FileCheck:
    try:
        path = inside(where, name)
        check_size(path, record)
    except IndexTTS2Error as error:
        present = (where / name).is_file()
        return FileCheck(name, "changed" if present else "missing", problem=str(error))
    return _check_hash(path, name, record.sha256, hash_files)


def _check_hash(path: Path, name: str, expected: str | None, hash_files: bool) -> FileCheck:
    size = path.stat().st_size
    if not hash_files:
        return FileCheck(name, "unchecked", size)
    digest = file_sha256(path)
    if expected is None:
        return FileCheck(name, "unchecked", size, digest)
    if digest != expected:
        return FileCheck(name, "changed", size, digest, f"{name} has SHA-256 {digest}; expected {expected}")
    return FileCheck(name, "ok", size, digest)


def _check_modules(directory: ModelDirectory, gpt_dtype: Any, problems: list[str]) -> tuple[ModuleCheck, ...]:
    reader = open_reader(directory)
    config = directory.config
    if "latent_projection" in reader.modules:
        stored = _attempt(lambda: reader.module("latent_projection"), [])  # reported below, with its module
        completed = _attempt(lambda: complete_config(config, stored.tensors), problems) if stored else None
        config = completed or config
    _attempt(lambda: read_constants(reader, config), problems)
    if reader.directory.layout is Layout.CONVERTED:  # the files of the official layout are listed one by one
        _attempt(lambda: directory.tokenizer_file, problems)
    return tuple(_check_module(reader, name, config, gpt_dtype) for name in reader.modules)


def _check_module(reader: Reader, name: str, config: ModelConfig, gpt_dtype: Any) -> ModuleCheck:
    try:
        stored = reader.module(name)
        module = build_empty(name, config)
        plan = plan_keys(module, {key: tuple(t.shape) for key, t in stored.tensors.items()}, stored.file)
    except IndexTTS2Error as error:
        return ModuleCheck(name, problem=str(error))
    parameters = sum(p.numel() for p in module.parameters())
    size = module_dtype(name, gpt_dtype).itemsize
    return ModuleCheck(name, len(stored.tensors), parameters, len(plan.dropped), parameters * size)


def _available_bytes() -> int | None:
    """Memory that can be used without swapping; None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, IndexError, StopIteration):
        return None


def _file_line(file: FileCheck) -> str:
    size = "" if file.size is None else f"{file.size / MIB:.1f}"
    return f"{file.path:52} {size:>9}  {file.status}" + (f": {file.problem}" if file.problem else "")


def _module_line(module: ModuleCheck) -> str:
    numbers = f"{module.tensors:8} {module.dropped:8} {module.parameters:13} {module.weight_bytes / MIB:9.1f}"
    return f"{module.name:20} {numbers}  {module.problem or 'ok'}"
