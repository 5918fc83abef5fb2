import json
from pathlib import Path

import pytest
import torch

from indextts2.checkpoints.check import check
from indextts2.checkpoints.loading import load_models
from indextts2.checkpoints.official import MODULES
from indextts2.checkpoints.pins import LockEntry, write_lock
from tests.checkpoints.test_loading import edit


@pytest.mark.parametrize("form", ["tiny_official", "tiny_converted"])
def test_good_directories(request: pytest.FixtureRequest, form: str) -> None:
    folder = request.getfixturevalue(form)
    report = check(folder, device="cpu", hash_files=form == "tiny_converted")
    assert report.ok, report.to_text()
    assert [module.name for module in report.modules] == list(MODULES)
    models = load_models(folder, "cpu")
    for module in report.modules:
        assert module.parameters == sum(p.numel() for p in models.module(module.name).parameters())
    assert report.weight_bytes == 4 * sum(module.parameters for module in report.modules)
    assert json.loads(json.dumps(report.to_dict()))["ok"] is True
    text = report.to_text()
    assert "config.yaml" in text and "bigvgan" in text and text.endswith("result     ok\n")


def test_every_problem_is_in_one_report(tiny_official: Path) -> None:
    (tiny_official / "hf_cache/campplus_cn_common.bin").unlink()
    (tiny_official / "bpe.model").unlink()
    edit(tiny_official / "gpt.pth", lambda c: c["model"].update({"module.x": torch.zeros(1)}))
    (tiny_official / "feat1.pt").write_bytes(b"nothing")
    report = check(tiny_official, device="cpu")
    assert not report.ok
    problems = {module.name: module.problem for module in report.modules if module.problem}
    assert set(problems) == {"gpt", "campplus"} and "unknown keys: x" in str(problems["gpt"])
    assert {file.path for file in report.files if file.status == "missing"} == {
        "hf_cache/campplus_cn_common.bin", "bpe.model",
    }  # fmt: skip
    assert any("feat1.pt" in problem for problem in report.problems)
    assert report.to_text().endswith("not usable\n")


def test_wrong_s2mel_is_reported_by_each_of_its_modules(tiny_official: Path) -> None:
    (tiny_official / "s2mel.pth").write_bytes(b"PK")
    problems = {module.name for module in check(tiny_official, device="cpu").modules if module.problem}
    assert problems == {"dit", "length_regulator", "latent_projection"}


def test_changed_files_are_found_by_hash(tiny_converted: Path) -> None:
    path = tiny_converted / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert check(tiny_converted, device="cpu").ok
    report = check(tiny_converted, device="cpu", hash_files=True)
    assert not report.ok
    changed = [file for file in report.files if file.status == "changed"]
    assert [file.path for file in changed] == ["model.safetensors"] and "SHA-256" in str(changed[0].problem)


def test_files_of_another_model_differ_from_the_published_ones(tiny_official: Path) -> None:
    report = check(tiny_official, device="cpu", hash_files=True)
    differing = {file.path for file in report.files if file.status == "differs"}
    assert report.ok and differing == {"bpe.model", "feat1.pt", "feat2.pt", "wav2vec2bert_stats.pt"}


def test_published_files_are_recognised(small_checkpoint: Path) -> None:
    status = {file.path: file.status for file in check(small_checkpoint, device="cpu", hash_files=True).files}
    assert all(status[name] == "ok" for name in ("bpe.model", "feat1.pt", "wav2vec2bert_stats.pt"))
    assert status["feat2.pt"] == "differs"  # the small model has its first columns only


def test_a_file_that_is_not_as_downloaded_is_a_problem(tiny_official: Path) -> None:
    write_lock(tiny_official, {"bpe.model": LockEntry("IndexTeam/IndexTTS-2", "bpe.model", None, "0" * 64, 6)})
    report = check(tiny_official, device="cpu", hash_files=True)
    assert [file.path for file in report.files if file.problem] == ["bpe.model"] and not report.ok


@pytest.mark.parametrize("name", ["none", "empty", "file", "badyaml", "badmanifest"])
def test_hopeless_directories_are_reported(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "file":
        path.touch()
    elif name != "none":
        path.mkdir()
    if name.startswith("bad"):
        (path / "config.yaml").write_text("[" if name == "badyaml" else "version: 2.0")
        if name == "badmanifest":
            (path / "manifest.json").write_text("[]")
    report = check(path)
    assert not report.ok and report.problems and "problem" in report.to_text()


def test_unknown_device_is_a_problem(tiny_converted: Path) -> None:
    assert any("toaster" in problem for problem in check(tiny_converted, device="toaster").problems)


def test_small_reference_checkpoint(small_checkpoint: Path) -> None:
    report = check(small_checkpoint, device="cpu", dtype="bfloat16")
    assert report.ok and report.version == 2.0 and report.dtype == "bfloat16"
    dropped = {module.name: module.dropped for module in report.modules}
    assert dropped["bigvgan"] == 0 and dropped["codec"] > 0 and dropped["gpt"] == 2
