import dataclasses
import shutil
from pathlib import Path

import pytest
import yaml

from indextts2.checkpoints import layout
from indextts2.checkpoints.config_files import dump_model_config
from indextts2.checkpoints.layout import Layout, ModelDirectory, inside, load_model_config, resolve_model
from indextts2.config import BigVGANConfig, FilesConfig, ModelConfig, W2VBertConfig
from indextts2.errors import CheckpointError, ConfigError


def make_directory(folder: Path, files: FilesConfig | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = ModelConfig(w2v_bert=W2VBertConfig(), bigvgan=BigVGANConfig(), files=files or FilesConfig())
    (folder / "config.yaml").write_text(yaml.safe_dump(dump_model_config(config)))
    return folder


@pytest.fixture
def official(tmp_path: Path, reference: Path) -> Path:
    """An official directory without weights."""
    folder, files = tmp_path / "checkpoints", reference / "checkpoint_files"
    for source, target in {
        "config_full.yaml": "config.yaml",
        "w2v_bert_full.json": "hf_cache/w2v-bert-2.0/config.json",
        "bigvgan_full.json": "hf_cache/bigvgan/config.json",
    }.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(files / source, folder / target)
    return folder


def test_official_directory(official: Path) -> None:
    directory = ModelDirectory.open(official)
    assert directory.layout is Layout.OFFICIAL
    assert directory.config.w2v_bert == W2VBertConfig()
    assert directory.emotion_text_directory is None
    with pytest.raises(CheckpointError, match=r"gpt\.pth is missing \(from IndexTeam/IndexTTS-2"):
        directory.file("gpt")


def test_older_hub_layout(official: Path) -> None:
    old = official / "hf_cache" / "models--nvidia--bigvgan_v2_22khz_80band_256x"
    blob = old / "blobs" / "abc"
    blob.parent.mkdir(parents=True)
    (official / "hf_cache/bigvgan/config.json").rename(blob)
    snapshot = old / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    assert ModelDirectory.open(official).file("bigvgan_config") == snapshot / "config.json"
    other = old / "snapshots" / "5678"
    shutil.copytree(snapshot, other)
    with pytest.raises(CheckpointError, match="2 snapshots"):
        load_model_config(official)
    (old / "refs").mkdir()
    (old / "refs" / "main").write_text("5678\n")
    assert ModelDirectory.open(official).file("bigvgan_config") == other / "config.json"


def test_hub_snapshot_as_model_directory(tmp_path: Path) -> None:
    model = tmp_path / "models--IndexTeam--IndexTTS-2"
    source = make_directory(tmp_path / "source")
    (model / "blobs").mkdir(parents=True)
    (source / "config.yaml").rename(model / "blobs" / "f00")
    snapshot = model / "snapshots" / "1234"
    snapshot.mkdir(parents=True)
    (snapshot / "config.yaml").symlink_to("../../blobs/f00")
    assert ModelDirectory.open(snapshot).config.w2v_bert is not None


@pytest.mark.parametrize("name", ["../gpt.pth", "/etc/passwd", "a/../../b", "", "a\0b", "..\\gpt.pth"])
def test_paths_that_leave_the_directory(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="must not leave it"):
        inside(tmp_path, name)
    directory = make_directory(tmp_path / "m", dataclasses.replace(FilesConfig(), gpt_checkpoint=name))
    with pytest.raises(ConfigError):
        ModelDirectory.open(directory)


def test_links_that_leave_the_directory(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "m")
    (tmp_path / "secret").write_text("x")
    (directory / "gpt.pth").symlink_to("../secret")
    with pytest.raises(ConfigError, match="link that leaves the model directory"):
        ModelDirectory.open(directory)


def test_configuration_elsewhere(tmp_path: Path) -> None:
    directory, other = make_directory(tmp_path / "m"), make_directory(tmp_path / "n")
    (directory / "config.yaml").unlink()
    with pytest.raises(CheckpointError, match=r"config\.yaml does not exist"):
        ModelDirectory.open(directory)
    assert ModelDirectory.open(directory, other / "config.yaml").path == directory


def test_resolve_by_path_installed_name_and_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    installed = make_directory(tmp_path / "assets" / "embedded")
    monkeypatch.setattr(layout, "installed_models", lambda: {"embedded": installed})
    monkeypatch.setenv("INDEXTTS2_CACHE", str(tmp_path / "cache"))
    cached = make_directory(tmp_path / "cache" / "indextts-2")
    assert resolve_model("embedded") == installed
    assert resolve_model("default") == installed
    assert resolve_model("indextts-2") == cached
    assert resolve_model(cached) == cached
    make_directory(tmp_path / "embedded")
    assert resolve_model("embedded") == Path("embedded")


def test_what_was_tried_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INDEXTTS2_CACHE", str(tmp_path / "cache"))
    with pytest.raises(CheckpointError) as caught:
        resolve_model("nonsense")
    for part in ("nonsense does not exist", "directory nonsense", "installed models", str(tmp_path / "cache")):
        assert part in str(caught.value)
    with pytest.raises(CheckpointError, match=r"has no config\.yaml"):
        resolve_model(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        resolve_model("../embedded")
    assert "installed" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: !!python/object/apply:os.system ['touch owned']", "not valid YAML"),
        ("a: &a [1]\nb: *a\n", "alias"),
        ("gpt_checkpoint: ${oc.env:HOME}/gpt.pth", None),
    ],
)
def test_hostile_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str | None) -> None:
    monkeypatch.chdir(tmp_path)
    directory = make_directory(tmp_path / "m")
    config = directory / "config.yaml"
    if message is None:  # taken literally: a file of that strange name in the model directory
        lines = [line for line in config.read_text().splitlines() if not line.startswith("gpt_checkpoint")]
        config.write_text("\n".join([*lines, text]))
        with pytest.raises(CheckpointError, match=r"\$\{oc\.env:HOME\}/gpt\.pth is missing"):
            ModelDirectory.open(directory).file("gpt")
        return
    config.write_text(text)
    with pytest.raises(ConfigError, match=message):
        ModelDirectory.open(directory)
    assert not (tmp_path / "owned").exists()
