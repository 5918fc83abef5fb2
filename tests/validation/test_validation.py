"""`dump` and `validate`: a run agrees with itself, and every way of not agreeing fails with its reason."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from indextts2.cli.main import main
from indextts2.cli.validate import COMPONENTS
from indextts2.validation.golden import compare, verdict

SHORT = ["--max-codes", "12", "--steps", "3", "--num-beams", "2", "--seed", "5"]
LAYOUT = {
    "manifest.json",
    *(f"input/{n}" for n in ("text.txt", "tokens.npy", "speaker_audio.npy", "reference_mel.npy", "flow_noise.npy")),
    *(f"encoders/{n}.npy" for n in ("speaker_emb", "semantic_feat", "semantic_codes")),
    *(f"gpt/{n}.npy" for n in ("layer_00", "layer_02", "layer_03", "mel_codes")),
    *(f"synthesis/{n}.npy" for n in ("length_reg", "dit_step_00", "dit_step_01", "dit_step_02", "mel_spec")),
    *("output/audio.npy", "output/audio.wav"),
}


@pytest.fixture(scope="module")
def model(small_checkpoint: Path) -> list[str]:
    return ["--model", str(small_checkpoint), "--cpu"]


@pytest.fixture(scope="module")
def golden_set(model: list[str], reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dump") / "golden"
    inputs = reference / "inputs"
    emotion = ["--emotion-audio", str(inputs / "emo.wav"), "--emotion-alpha", "0.6"]
    command = ["dump", "-t", "Hello world.", "-s", str(inputs / "spk.wav"), "-o", str(folder), *emotion, *SHORT]
    assert main([*command, *model]) == 0
    return folder


def test_a_dump_holds_the_promised_files(golden_set: Path) -> None:
    present = {str(path.relative_to(golden_set)) for path in golden_set.rglob("*")}
    assert present >= LAYOUT
    manifest = json.loads((golden_set / "manifest.json").read_text())
    assert manifest["mock"] is False
    assert manifest["seed"] == 5
    assert manifest["options"]["steps"] == 3
    assert all(len(digest) == 64 for digest in manifest["model"]["files"].values())
    assert len(manifest["model"]["files"]) >= 8


def test_a_run_with_a_preset_agrees_with_itself(
    model: list[str], reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shortcuts = ["--preset", "fast", "--solver", "midpoint", "--prompt-seconds", "1"]
    speaker = str(reference / "inputs" / "spk.wav")
    command = ["dump", "-t", "Hello world.", "-s", speaker, "-o", str(tmp_path / "golden"), *SHORT, *shortcuts]
    assert main([*command, *model]) == 0
    capsys.readouterr()
    assert main(["validate", "--golden-dir", str(tmp_path / "golden"), "--json", *model]) == 0
    assert json.loads(capsys.readouterr().out)["passed"] is True


def test_every_component_agrees_with_itself(
    golden_set: Path, model: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["validate", "--golden-dir", str(golden_set), "--json", *model]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["passed"] is True
    assert {c["component"] for c in result["comparisons"]} == set(COMPONENTS)
    assert all(c["max_difference"] < 1e-4 for c in result["comparisons"])


def test_the_dump_is_the_speech_of_infer(golden_set: Path, model: list[str], reference: Path, tmp_path: Path) -> None:
    inputs = reference / "inputs"
    emotion = ["--emotion-audio", str(inputs / "emo.wav"), "--emotion-alpha", "0.6"]
    out = tmp_path / "speech.wav"
    command = ["infer", "-t", "Hello world.", "-s", str(inputs / "spk.wav"), "-o", str(out), *emotion, *SHORT]
    assert main([*command, *model]) == 0
    import soundfile

    speech, dumped = (soundfile.read(p, dtype="int16")[0].astype(int) for p in (out, golden_set / "output/audio.wav"))
    assert np.abs(speech - dumped).max() <= 1


def spoil_value(folder: Path) -> str:
    path = folder / "encoders/speaker_emb.npy"
    array = np.load(path)
    array[0, 0] += 0.1
    np.save(path, array)
    return "1 of 192 values outside the tolerance"


def spoil_with_nan(folder: Path) -> str:
    path = folder / "encoders/speaker_emb.npy"
    np.save(path, np.full_like(np.load(path), np.nan))
    return "NaN or infinity"


def spoil_shape(folder: Path) -> str:
    path = folder / "encoders/speaker_emb.npy"
    np.save(path, np.load(path)[:, :100])
    return "the manifest says"


def remove(folder: Path) -> str:
    (folder / "encoders/speaker_emb.npy").unlink()
    return "missing or unreadable"


def truncate(folder: Path) -> str:
    path = folder / "encoders/speaker_emb.npy"
    path.write_bytes(path.read_bytes()[:40])
    return "no array file"


@pytest.mark.parametrize("spoil", [spoil_value, spoil_with_nan, spoil_shape, remove, truncate])
def test_a_spoiled_array_fails_with_its_reason(
    golden_set: Path,
    model: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], str],
) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(golden_set, folder)
    reason = spoil(folder)
    command = ["validate", "--golden-dir", str(folder), *model]
    assert main([*command, "--component", "speaker"]) == 9
    assert reason in capsys.readouterr().err
    assert main([*command, "--component", "vocoder"]) == 0


def test_a_missing_input_fails_its_component(
    golden_set: Path, model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "golden"
    shutil.copytree(golden_set, folder)
    (folder / "input/speaker_audio.npy").unlink()
    assert main(["validate", "--golden-dir", str(folder), "--component", "mel", *model]) == 9
    assert "speaker_audio.npy is missing" in capsys.readouterr().err


def test_a_mock_says_so_and_is_refused(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    for folder in folders:
        assert main(["dump", "--mock", "-t", "Hello.", "-o", str(folder), "--seed", "3"]) == 0
    assert json.loads((folders[0] / "manifest.json").read_text())["mock"] is True
    assert np.array_equal(*(np.load(folder / "gpt/mel_codes.npy") for folder in folders))
    assert (folders[0] / "gpt/layer_23.npy").exists()
    assert main(["validate", "--golden-dir", str(folders[0]), *model]) == 9
    assert "mock" in capsys.readouterr().err
    assert main(["dump", "--mock", "-t", "Hello.", "-o", str(folders[0])]) == 2


def test_folders_that_hold_no_set(model: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--golden-dir", str(tmp_path / "absent"), *model]) == 9
    (tmp_path / "manifest.json").write_text("{")
    assert main(["validate", "--golden-dir", str(tmp_path), *model]) == 9
    (tmp_path / "manifest.json").write_text('{"format": "other"}')
    assert main(["validate", "--golden-dir", str(tmp_path), *model]) == 9
    assert "dump it again" in capsys.readouterr().err


def test_a_component_without_comparison_is_no_success() -> None:
    same = compare("mel", "x", np.ones(3), np.ones(3), 0, 0)
    assert verdict(["mel"], [same]) == (True, [])
    assert verdict(["mel", "gpt"], [same]) == (False, ["gpt: nothing was compared"])
    assert not compare("mel", "x", np.ones(0), np.ones(0), 0, 0).passed
    assert not compare("gpt", "x", np.array([1, 2]), np.array([1, 3]), 10, 10).passed
    assert not compare("mel", "x", np.ones((1, 3)), np.ones(3), 1, 1).passed
