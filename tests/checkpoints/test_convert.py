import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from indextts2.checkpoints import convert as convert_module
from indextts2.checkpoints.convert import ConvertProgress, convert, save_modules
from indextts2.checkpoints.layout import Layout, ModelDirectory
from indextts2.checkpoints.loading import load_models
from indextts2.checkpoints.official import MODULES
from indextts2.errors import CheckpointError, IndexTTS2Error, UsageError
from tests.checkpoints.conftest import TINY
from tests.checkpoints.test_loading import assert_equal_state, edit


def test_converted_official_directory_is_bit_equal(tiny_official: Path, tmp_path: Path) -> None:
    steps: list[ConvertProgress] = []
    out = convert(tiny_official, tmp_path / "out", on_progress=steps.append)
    directory = ModelDirectory.open(out)
    assert directory.layout is Layout.CONVERTED and directory.config == TINY
    before, after = load_models(tiny_official, "cpu"), load_models(out, "cpu")
    for name in MODULES:
        assert_equal_state(after.module(name), before.module(name))
    assert torch.equal(after.feature_statistics.var, before.feature_statistics.var)
    assert torch.equal(after.emotion_matrices.emotion, before.emotion_matrices.emotion)
    assert after.fingerprint == before.fingerprint
    assert [step.what for step in steps] == [*MODULES, "writing"]
    assert [step.done for step in steps] == list(range(len(MODULES) + 1))


def test_small_reference_checkpoint_is_bit_equal(small_checkpoint: Path, tmp_path: Path) -> None:
    out = convert(small_checkpoint, tmp_path / "out")
    before, after = load_models(small_checkpoint, "cpu"), load_models(out, "cpu")
    for name in MODULES:
        assert_equal_state(after.module(name), before.module(name))
    keys = set(load_file(out / "model.safetensors"))
    assert not {key for key in keys if "decoder" in key or "text_head" in key or "weight_g" in key}
    assert not {key for key in keys if key.startswith("w2v_bert.encoder.layers.3")}


def test_manifest_lists_every_file_with_its_hash(tiny_official: Path, tmp_path: Path) -> None:
    out = convert(tiny_official, tmp_path / "out")
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["format"] == "indextts2" and manifest["format_version"] == 1
    assert set(manifest["files"]) == {"bpe.model", "config.yaml", "model.safetensors"}
    for name, record in manifest["files"].items():
        content = (out / name).read_bytes()
        assert record["size"] == len(content) and record["sha256"] == hashlib.sha256(content).hexdigest()
    assert manifest["files"]["model.safetensors"]["tensors"] == len(load_file(out / "model.safetensors"))
    assert manifest["source"]["layout"] == "official"
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in out.iterdir())


def test_text_head_and_unused_tensors_are_kept_on_request(tiny_official: Path, tmp_path: Path) -> None:
    rows = TINY.gpt.number_text_tokens + 1
    head = {"module.text_head.weight": torch.randn(rows, 32), "module.text_head.bias": torch.randn(rows)}
    edit(tiny_official / "gpt.pth", lambda c: c["model"].update(head))
    edit(tiny_official / "s2mel.pth", lambda c: c["net"]["length_regulator"].update({"mask_token": torch.ones(1, 16)}))
    plain, with_head, everything = (
        convert(tiny_official, tmp_path / str(i), **options)
        for i, options in enumerate([{}, {"keep_text_head": True}, {"keep_unused": True}])
    )
    names = [set(load_file(out / "model.safetensors")) for out in (plain, with_head, everything)]
    assert names[1] - names[0] == {"gpt.text_head.weight", "gpt.text_head.bias"}
    assert names[2] - names[1] == {"length_regulator.mask_token"}
    assert load_models(with_head, "cpu").gpt.text_head is None
    loaded = load_models(with_head, "cpu", only=["gpt"], with_text_head=True).gpt
    assert loaded.text_head is not None and torch.equal(loaded.text_head.weight, head["module.text_head.weight"])
    with pytest.raises(CheckpointError, match=r"missing keys: text_head\.weight"):
        load_models(plain, "cpu", only=["gpt"], with_text_head=True)


def test_half_precision_storage(tiny_official: Path, tmp_path: Path) -> None:
    out = convert(tiny_official, tmp_path / "half", torch.float16)
    stored = load_file(out / "model.safetensors")
    assert stored["gpt.mel_head.weight"].dtype is torch.float16
    assert stored["constants.var"].dtype is torch.float32
    before, after = load_models(tiny_official, "cpu"), load_models(out, "cpu")
    assert torch.equal(after.gpt.mel_head.weight, before.gpt.mel_head.weight.half().float())
    assert after.fingerprint != before.fingerprint
    with pytest.raises(UsageError, match="floating point"):
        convert(tiny_official, tmp_path / "ints", torch.int8)


def test_several_files(tiny_official: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module, "SHARD_BYTES", 200_000)
    out = convert(tiny_official, tmp_path / "out")
    shards = sorted(out.glob("*.safetensors"))
    assert len(shards) > 2 and shards[0].name == f"model-00001-of-{len(shards):05d}.safetensors"
    assert_equal_state(load_models(out, "cpu").dit, load_models(tiny_official, "cpu").dit)


def test_conversion_of_a_converted_model(tiny_converted: Path, tmp_path: Path) -> None:
    out = convert(tiny_converted, tmp_path / "again")
    assert_equal_state(load_models(out, "cpu").gpt, load_models(tiny_converted, "cpu").gpt)


def test_nothing_is_left_of_a_failed_conversion(tiny_official: Path, tmp_path: Path) -> None:
    def stop(step: ConvertProgress) -> None:
        if step.what == "writing":
            raise KeyboardInterrupt

    before = set(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        convert(tiny_official, tmp_path / "out", on_progress=stop)
    edit(tiny_official / "gpt.pth", lambda c: c["model"].update({"module.x": torch.zeros(1)}))
    with pytest.raises(CheckpointError, match="unknown keys: x"):
        convert(tiny_official, tmp_path / "out")
    assert set(tmp_path.iterdir()) == before


def test_an_existing_directory_is_not_overwritten(tiny_official: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    with pytest.raises(CheckpointError, match="exists and is not empty"):
        convert(tiny_official, tmp_path / "out")
    assert (tmp_path / "out" / "precious").exists()


def damage_size(folder: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"x")


def change_manifest(folder: Path, **changes: object) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_size, "the manifest says"),
        (lambda f: (f / "model.safetensors").unlink(), "is missing"),
        (lambda f: change_manifest(f, format_version=2), "format version 2"),
        (lambda f: change_manifest(f, format="other"), "not the manifest of an indextts2 model"),
        (lambda f: change_manifest(f, modules=["warp"]), "unknown modules"),
        (lambda f: change_manifest(f, files={"../x.safetensors": {"size": 1, "sha256": "", "tensors": 1}}), "leave"),
        (lambda f: change_manifest(f, files={"a": {"length": 1}}), "malformed"),
        (lambda f: change_manifest(f, modules=["gpt"]), "belongs to no module"),
        (lambda f: (f / "manifest.json").write_text("{"), "cannot be read"),
    ],
)
def test_damaged_converted_models(tiny_converted: Path, damage: Callable[[Path], object], message: str) -> None:
    damage(tiny_converted)
    with pytest.raises(IndexTTS2Error, match=message):
        load_models(tiny_converted, "cpu")


def test_a_model_may_lack_modules(
    tmp_path: Path, tiny_modules: dict[str, torch.nn.Module], tiny_constants: dict[str, torch.Tensor]
) -> None:
    some = {name: tiny_modules[name] for name in ("gpt", "dit")}
    (tmp_path / "pieces").touch()
    out = save_modules(tmp_path / "out", TINY, some, tiny_constants, copies={"bpe.model": tmp_path / "pieces"})
    assert tuple(load_models(out, "cpu").modules) == ("gpt", "dit")
    with pytest.raises(CheckpointError, match="holds no bigvgan; it holds gpt, dit"):
        load_models(out, "cpu", only=["bigvgan"])
