"""What a model directory is: the official layout, our converted one, and how a model is found by name.

Official (spec 01 section 2): ``config.yaml``, pickles beside it and the files of four more repositories under
``hf_cache``. Converted: ``config.yaml`` with all sections, safetensors and ``manifest.json``.
"""

from __future__ import annotations

import importlib.resources
import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from indextts2.checkpoints.config_files import read_model_config
from indextts2.config import FilesConfig, ModelConfig
from indextts2.errors import CheckpointError, ConfigError

CONFIG_FILE = "config.yaml"
MANIFEST_FILE = "manifest.json"
DEFAULT_MODEL = "embedded"
CACHE_VARIABLE = "INDEXTTS2_CACHE"


class Layout(Enum):
    """The form of a model directory."""

    OFFICIAL = "official"
    CONVERTED = "converted"


@dataclass(frozen=True)
class ModelFile:
    """A file of the official layout: its `path` in the model directory and where it was published."""

    role: str
    path: str
    repository: str
    repository_path: str
    required: bool = True


MAIN_REPOSITORY = "IndexTeam/IndexTTS-2"


def official_files(files: FilesConfig | None = None) -> tuple[ModelFile, ...]:
    """Every file of the official layout that inference reads, under the names that `files` gives them."""
    names = files or FilesConfig()
    w2v_bert, bigvgan = "facebook/w2v-bert-2.0", "nvidia/bigvgan_v2_22khz_80band_256x"
    own = {
        "config": CONFIG_FILE, "tokenizer": names.bpe_model, "gpt": names.gpt_checkpoint,
        "s2mel": names.s2mel_checkpoint, "statistics": names.w2v_stat, "emotion_matrix": names.emo_matrix,
        "speaker_matrix": names.spk_matrix,
    }  # fmt: skip
    return (
        *(ModelFile(role, path, MAIN_REPOSITORY, path) for role, path in own.items()),
        ModelFile("w2v_bert_config", "hf_cache/w2v-bert-2.0/config.json", w2v_bert, "config.json"),
        ModelFile("w2v_bert_features", "hf_cache/w2v-bert-2.0/preprocessor_config.json", w2v_bert,
                  "preprocessor_config.json", required=False),
        ModelFile("w2v_bert", "hf_cache/w2v-bert-2.0/model.safetensors", w2v_bert, "model.safetensors"),
        ModelFile("codec", "hf_cache/semantic_codec_model.safetensors", "amphion/MaskGCT",
                  "semantic_codec/model.safetensors"),
        ModelFile("campplus", "hf_cache/campplus_cn_common.bin", "funasr/campplus", "campplus_cn_common.bin"),
        ModelFile("bigvgan_config", "hf_cache/bigvgan/config.json", bigvgan, "config.json"),
        ModelFile("bigvgan", "hf_cache/bigvgan/bigvgan_generator.pt", bigvgan, "bigvgan_generator.pt"),
    )  # fmt: skip


@dataclass(frozen=True)
class ModelDirectory:
    """A model directory whose configuration has been read and whose form is known."""

    path: Path
    layout: Layout
    config: ModelConfig
    config_path: Path

    @classmethod
    def open(cls, path: str | Path, config_path: str | Path | None = None) -> ModelDirectory:
        """Read the configuration of the model directory `path`; no weights are touched.

        Args:
            path: the directory.
            config_path: a ``config.yaml`` that lies elsewhere, given by the user.

        Raises:
            CheckpointError: there is no such directory or it holds no configuration.
            ConfigError: the configuration is not valid.
        """
        directory = Path(path)
        if not directory.is_dir():
            raise CheckpointError(f"model directory {directory} does not exist; see `indextts2 download`")
        config_yaml = Path(config_path) if config_path is not None else directory / CONFIG_FILE
        if not config_yaml.is_file():
            raise CheckpointError(f"{directory} is not a model directory: {config_yaml} does not exist")
        layout = detect_layout(directory)
        config = load_model_config(directory, config_yaml)
        return cls(directory, layout, config, config_yaml)

    def file(self, role: str) -> Path:
        """Where the file of the official layout with this role lies (see `official_files`).

        Raises:
            CheckpointError: it is missing; the message lists the places searched.
        """
        entry = next(entry for entry in official_files(self.config.files) if entry.role == role)
        found = find_file(self.path, entry)
        if found is None:
            raise CheckpointError(
                f"{self.path / entry.path} is missing (from {entry.repository}, file {entry.repository_path}); "
                f"run `indextts2 download` for this directory"
            )
        return found

    @property
    def tokenizer_file(self) -> Path | None:
        """The SentencePiece model, or None for a model that reads phonemes."""
        if self.config.tokenizer != "sentencepiece":
            return None
        return self.file("tokenizer")

    @property
    def emotion_text_directory(self) -> Path | None:
        """Directory of the model that reads emotion from words, if it is there."""
        path = inside(self.path, self.config.files.qwen_emo_path)
        return path if path.is_dir() else None


def detect_layout(directory: Path) -> Layout:
    """Converted when there is a manifest, official otherwise."""
    return Layout.CONVERTED if (directory / MANIFEST_FILE).is_file() else Layout.OFFICIAL


def load_model_config(directory: str | Path, config_path: str | Path | None = None) -> ModelConfig:
    """The complete configuration of a model directory: ``config.yaml`` merged with the two JSON files.

    Raises:
        ConfigError: a file is missing or malformed, a size is unknown, or a path leaves the directory.
    """
    directory = Path(directory)
    config_yaml = Path(config_path) if config_path is not None else inside(directory, CONFIG_FILE)
    entries = {entry.role: entry for entry in official_files()}
    config = read_model_config(
        config_yaml,
        find_file(directory, entries["w2v_bert_config"]),
        find_file(directory, entries["bigvgan_config"]),
    )
    for name in vars(config.files).values():
        inside(directory, name)
    return config


def inside(directory: Path, name: str) -> Path:
    """`directory / name`, refused where it leaves the directory.

    A snapshot of the hub's cache consists of links into its ``blobs`` folder, which therefore count as inside.

    Raises:
        ConfigError: the name is absolute, climbs with `..`, or is a link to somewhere else.
    """
    relative = Path(name)
    if not name or "\0" in name or relative.is_absolute() or ".." in relative.parts or "\\" in name:
        raise ConfigError(f"path {name!r} must be relative to the model directory and must not leave it")
    path = directory / relative
    root = directory.resolve()
    if root.parent.name == "snapshots" and root.parent.parent.name.startswith("models--"):
        root = root.parent.parent
    if not path.resolve().is_relative_to(root):
        raise ConfigError(f"{path} is a link that leaves the model directory; put the file itself there")
    return path


def find_file(directory: Path, entry: ModelFile) -> Path | None:
    """The file at its own path, or in the older hub layout under ``hf_cache``; None when it is nowhere."""
    path = inside(directory, entry.path)
    if path.is_file():
        return path
    if not entry.path.startswith("hf_cache/"):
        return None
    return _find_in_hub_layout(directory, entry)


def _find_in_hub_layout(directory: Path, entry: ModelFile) -> Path | None:
    """``hf_cache/models--owner--name/snapshots/<hash>/file``: the snapshot of `main`, or the only one there is."""
    hub = Path("hf_cache") / f"models--{entry.repository.replace('/', '--')}"
    snapshots = directory / hub / "snapshots"
    if not snapshots.is_dir():
        return None
    holding = [s.name for s in sorted(snapshots.iterdir()) if (s / entry.repository_path).is_file()]
    reference = directory / hub / "refs" / "main"
    current = reference.read_text().strip() if reference.is_file() else None
    if current not in holding:
        if len(holding) > 1:
            raise CheckpointError(f"{snapshots} has {len(holding)} snapshots with {entry.repository_path}; keep one")
        current = holding[0] if holding else None
    return inside(directory, str(hub / "snapshots" / current / entry.repository_path)) if current else None


def model_cache() -> Path:
    """Where downloaded models live: $INDEXTTS2_CACHE, else the user's cache folder."""
    if explicit := os.environ.get(CACHE_VARIABLE):
        return Path(explicit)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "indextts2" / "models"


def installed_models() -> dict[str, Path]:
    """Models that came with the package, by name."""
    assets = importlib.resources.files("indextts2") / "assets"
    if not isinstance(assets, Path) or not assets.is_dir():
        return {}
    return {path.name: path for path in sorted(assets.iterdir()) if (path / CONFIG_FILE).is_file()}


def resolve_model(name_or_path: str | Path | None) -> Path:
    """The directory of a model: a path, the name of an installed model, or a name in the user's cache.

    None is the model that came with the package.

    Raises:
        CheckpointError: it is none of these; the message lists what was tried.
    """
    if name_or_path is None:
        if DEFAULT_MODEL not in installed_models():
            raise CheckpointError(
                "no model was named, and none came with this installation; name a model directory (--model DIR), or "
                "fetch one with `indextts2 download`"
            )
        return installed_models()[DEFAULT_MODEL]
    path = Path(name_or_path)
    if (path / CONFIG_FILE).is_file():
        return path
    tried = [f"directory {path}"]
    name = str(name_or_path)
    is_name = isinstance(name_or_path, str) and len(path.parts) == 1 and name not in (".", "..")
    if is_name:
        installed = installed_models()
        wanted = DEFAULT_MODEL if name == "default" else name
        if wanted in installed:
            return installed[wanted]
        tried.append(f"installed models ({', '.join(installed) or 'none'})")
        cached = model_cache() / name
        if (cached / CONFIG_FILE).is_file():
            return cached
        tried.append(f"downloaded model {cached}")
    reason = f"has no {CONFIG_FILE}" if path.is_dir() else "does not exist"
    raise CheckpointError(f"no model {name!r} ({path} {reason}); tried: {'; '.join(tried)}. See `indextts2 download`")
