"""One training loop for every stage: seed, schedule, precision, averaging, logs, checkpoints, resume.

A stage gives a module, batches and losses (`Stage`); `run_stage` does the rest. A run can be cut at any minute
(SIGTERM, Ctrl-C, end of `minutes`) and goes on from its last checkpoint with the same random numbers and data order.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from indextts2.errors import ConfigError
from indextts2.training.optimizers import Optimizers, split_matrices

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunConfig:
    """Everything about a run that is not about the stage. `minutes` counts training time over all resumes."""

    output: str
    minutes: float = 30.0
    # Ends the run and drives the schedule instead of the minutes when above 0.
    steps: int = 0
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    warmup_steps: int = 200
    # adamw, or muon: Muon for the matrices of hidden layers, AdamW for the rest.
    optimizer: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    precision: str = "bfloat16"
    device: str = "cpu"
    threads: int = 1
    seed: int = 1
    # Folder of another run whose averaged weights this one starts from; parts that it lacks start fresh.
    start_from: str = ""
    checkpoint_minutes: float = 4.0
    log_every: int = 20

    def __post_init__(self) -> None:
        if self.precision not in ("bfloat16", "float32"):
            raise ConfigError(f"precision must be bfloat16 or float32, not {self.precision!r}")
        if self.optimizer not in ("adamw", "muon"):
            raise ConfigError(f"optimizer must be adamw or muon, not {self.optimizer!r}")
        if self.minutes <= 0 and self.steps <= 0:
            raise ConfigError("a run needs minutes or steps above 0")


class Stage:
    """What a stage brings. Subclasses set `name` and `model` and override the methods below.

    `model` holds everything that is trained; its averaged copy goes into the checkpoint as ``ema``. Stages that train
    an adversary keep its optimizer themselves and store it through `state`/`load_state`.
    """

    name: str
    model: nn.Module
    device: torch.device
    # Prefixes of parameters that Muon leaves to AdamW although they are matrices: heads, first and last maps.
    outer_layers: tuple[str, ...] = ()

    def next_batch(self, rng: np.random.Generator) -> Any:
        """The next training batch (tensors on the CPU or on `device`)."""
        raise NotImplementedError

    def losses(self, batch: Any, step: int) -> dict[str, Tensor]:
        """Scalars to log; ``loss`` is the one that is minimised. Runs under the precision of the run."""
        raise NotImplementedError

    def evaluate(self) -> dict[str, float]:
        """Figures of one evaluation on held-out data; `model` carries the averaged weights then."""
        return {}

    def parameters(self) -> list[nn.Parameter]:
        """The parameters that the runner's optimizer updates."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer; `scale` multiplies the learning rate of a group."""
        return [{"params": self.parameters(), "scale": 1.0}]

    def state(self) -> dict[str, Any]:
        """Position in the data and anything else that a resumed run needs."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Inverse of `state`."""


class Average:
    """Exponential moving average of a module's parameters and copies of its buffers, in float32."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.values = {name: value.detach().clone() for name, value in model.state_dict().items()}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        self.updates += 1
        # A short memory at the start lets the average forget the initial weights.
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.values[name].lerp_(value, 1 - decay)
            else:
                self.values[name].copy_(value)

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Run the body with the averaged weights in `model`."""
        backup = {name: value.detach().clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(backup)


def write_atomically(path: Path, data: dict[str, Any]) -> None:
    """torch.save to a neighbour file, then rename, so that a cut never leaves half a checkpoint."""
    partial = path.with_suffix(".partial")
    torch.save(data, partial)
    partial.replace(path)


def load_trained(output: str | Path, device: str = "cpu") -> dict[str, Tensor]:
    """Averaged weights of a finished or running stage, read from its ``last.pt``."""
    path = Path(output) / "last.pt"
    if not path.exists():
        raise ConfigError(f"{path} does not exist; train that stage first")
    return torch.load(path, map_location=device, weights_only=True)["ema"]


def start_from(model: nn.Module, output: str) -> None:
    """Copy the averaged weights of the run in `output` into `model`.

    Raises:
        ConfigError: a weight is unknown to the model, has another shape, or no weight fits at all.
    """
    try:
        result = model.load_state_dict(load_trained(output), strict=False)
    except RuntimeError as error:
        raise ConfigError(f"the weights in {output} do not fit this stage: {error}") from error
    if result.unexpected_keys:
        raise ConfigError(f"{output} holds weights that this stage does not know: {result.unexpected_keys[:8]}")
    if result.missing_keys:
        log.warning("%s lacks %d tensors, which start fresh: %s", output, len(result.missing_keys), result.missing_keys)


class Run:
    """State of one running stage: optimizer, average, counters, random generators."""

    def __init__(self, stage: Stage, config: RunConfig) -> None:
        self.stage, self.config = stage, config
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        stage.device = torch.device(config.device)
        if config.start_from:
            start_from(stage.model, config.start_from)
        stage.model.to(stage.device)
        self.optimizer = self._optimizers()
        self.average = Average(stage.model, config.ema_decay)
        self.rng = np.random.default_rng(config.seed)
        self.step, self.seconds = 0, 0.0
        self.should_stop = False

    def _optimizers(self) -> Optimizers:
        config, groups = self.config, self.stage.parameter_groups()
        matrices: list[nn.Parameter] = []
        if config.optimizer == "muon":
            matrices, others = split_matrices(self.stage.model, self.stage.outer_layers)
            groups = [{"params": others}]
        return Optimizers(groups, matrices, config.learning_rate, config.betas, config.weight_decay)

    @property
    def progress(self) -> float:
        """0 at the start, 1 at the end of the run."""
        if self.config.steps:
            return min(1.0, self.step / self.config.steps)
        return min(1.0, self.seconds / (60 * self.config.minutes))

    def learning_rate(self) -> float:
        """Linear warm-up over steps, then cosine over the progress of the run."""
        config = self.config
        warmup = min(1.0, (self.step + 1) / max(1, config.warmup_steps))
        cosine = 0.5 * (1 + math.cos(math.pi * self.progress))
        return warmup * (config.final_learning_rate + (config.learning_rate - config.final_learning_rate) * cosine)

    def train_step(self) -> dict[str, float]:
        """One batch: losses, gradients, update; returns the logged figures."""
        config, rate = self.config, self.learning_rate()
        batch = self.stage.next_batch(self.rng)
        with torch.autocast(self.stage.device.type, torch.bfloat16, enabled=config.precision == "bfloat16"):
            losses = self.stage.losses(batch, self.step)
        self.optimizer.zero_grad()
        losses["loss"].backward()
        norm = float(nn.utils.clip_grad_norm_(self.stage.parameters(), config.clip_norm))
        if math.isfinite(norm):
            self.optimizer.step(rate)
            self.average.update(self.stage.model)
        else:
            log.warning("step %d skipped: gradient norm %s", self.step, norm)
        self.step += 1
        return {**{name: float(value.detach()) for name, value in losses.items()}, "gradient": norm, "rate": rate}

    def save(self) -> None:
        write_atomically(self.folder / "last.pt", {
            "model": self.stage.model.state_dict(), "ema": self.average.values, "ema_updates": self.average.updates,
            "optimizer": self.optimizer.state_dict(), "stage": self.stage.state(), "step": self.step,
            "seconds": self.seconds, "numpy_rng": self.rng.bit_generator.state, "torch_rng": torch.get_rng_state(),
        })  # fmt: skip

    def resume(self) -> bool:
        """Continue from ``last.pt`` when there is one."""
        path = self.folder / "last.pt"
        if not path.exists():
            return False
        saved = torch.load(path, map_location=self.stage.device, weights_only=True)
        self.stage.model.load_state_dict(saved["model"])
        self.average.values, self.average.updates = saved["ema"], saved["ema_updates"]
        self.optimizer.load_state_dict(saved["optimizer"])
        self.stage.load_state(saved["stage"])
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.rng.bit_generator.state = saved["numpy_rng"]
        torch.set_rng_state(saved["torch_rng"].cpu())
        log.info("%s: continuing at step %d, %.1f minutes", self.stage.name, self.step, self.seconds / 60)
        return True


def _write_config(run: Run) -> None:
    import yaml

    values: dict[str, Any] = {"run": dataclasses.asdict(run.config)}
    stage_config = getattr(run.stage, "config", None)
    if dataclasses.is_dataclass(stage_config) and not isinstance(stage_config, type):
        values["stage"] = dataclasses.asdict(stage_config)
    text = yaml.safe_dump(json.loads(json.dumps(values, default=str)), sort_keys=False)
    (run.folder / "config.yaml").write_text(text, encoding="utf-8")


def plot_losses(folder: Path) -> Path | None:
    """Draw ``losses.jsonl`` into ``losses.png``; None when matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        log.warning("matplotlib is not installed (extra `train`): no loss plot")
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    names = dict.fromkeys(n for line in lines for n in line if n not in ("step", "minutes", "rate", "gradient"))
    figure, axes = pyplot.subplots(figsize=(8, 5))
    for name in names:
        points = [(line["step"], line[name]) for line in lines if name in line]
        axes.plot(*zip(*points, strict=True), label=name)
    axes.set_xlabel("step")
    axes.set_yscale("symlog", linthresh=0.1)
    axes.legend()
    figure.savefig(folder / "losses.png", dpi=100)
    pyplot.close(figure)
    return folder / "losses.png"


@contextmanager
def _stop_on_signal(run: Run) -> Iterator[None]:
    """SIGTERM and SIGINT end the run after the current step, with a checkpoint."""

    def stop(number: int, _frame: object) -> None:
        log.info("signal %d: stopping after this step", number)
        run.should_stop = True

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _loop(run: Run) -> None:
    from tqdm import tqdm

    config = run.config
    sums: dict[str, float] = {}
    count, last_save = 0, time.monotonic()
    bar = tqdm(total=1000, unit="permille", desc=run.stage.name, disable=not sys.stderr.isatty(), file=sys.stderr)
    with (run.folder / "losses.jsonl").open("a", encoding="utf-8") as file, bar:
        while run.progress < 1 and not run.should_stop:
            started = time.monotonic()
            for name, value in run.train_step().items():
                sums[name] = sums.get(name, 0.0) + value
            count += 1
            run.seconds += time.monotonic() - started
            if run.step % config.log_every == 0:
                means = {name: round(value / count, 6) for name, value in sums.items()}
                line = {"step": run.step, "minutes": round(run.seconds / 60, 2), **means}
                file.write(json.dumps(line) + "\n")
                file.flush()
                log.info("%s %s", run.stage.name, line)
                bar.n = int(1000 * run.progress)
                bar.set_postfix(step=run.step, loss=means["loss"])
                sums, count = {}, 0
            if time.monotonic() - last_save > 60 * config.checkpoint_minutes:
                run.save()
                last_save = time.monotonic()


def run_stage(stage: Stage, config: RunConfig) -> dict[str, float]:
    """Train `stage` to the end of its time or steps (resuming), evaluate once; returns the figures of the evaluation.

    Writes into ``config.output``: ``config.yaml``, ``losses.jsonl``, ``losses.png``, ``last.pt`` and, after a complete
    run, ``evaluation.json``. A run stopped by a signal returns an empty mapping.
    """
    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    run = Run(stage, config)
    run.resume()
    _write_config(run)
    stage.model.train()
    with _stop_on_signal(run):
        _loop(run)
    run.save()
    if (run.folder / "losses.jsonl").stat().st_size:
        plot_losses(run.folder)
    if run.should_stop:
        return {}
    stage.model.eval()
    with run.average.applied(stage.model), torch.no_grad():
        figures = stage.evaluate()
    (run.folder / "evaluation.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")
    log.info("%s evaluation: %s", stage.name, figures)
    return figures
