"""The command line on the small name-derived model: files, pipes, JSON, exit codes."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from indextts2.cli.main import COMMANDS, main

SHORT = ["--max-codes", "8", "--steps", "1", "--num-beams", "1", "--seed", "1", "--cpu"]


@pytest.fixture(scope="module")
def infer(small_checkpoint: Path, reference: Path) -> list[str]:
    speaker = reference / "inputs" / "spk.wav"
    return ["infer", "--model", str(small_checkpoint), "-s", str(speaker), *SHORT]


def test_infer_writes_a_file_and_prints_one_summary_line(
    infer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "speech.flac"
    assert main([*infer, "-t", "Hello world.", "-o", str(out), "--plot", str(tmp_path / "p.png")]) == 0
    samples, rate = soundfile.read(out)
    assert rate == 22050
    assert len(samples) == int(8 * 1.72) * 256
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "s of audio, RTF" in printed.err
    assert "seed 1" in printed.err
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_subtype_chooses_the_sample_format(infer: list[str], tmp_path: Path) -> None:
    out = tmp_path / "speech.wav"
    assert main([*infer, "-t", "Hello world.", "-o", str(out), "--subtype", "FLOAT"]) == 0
    assert soundfile.info(out).subtype == "FLOAT"


def test_json_is_for_machines(infer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*infer, "-t", "Hello world.", "-o", str(tmp_path / "a.wav"), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["codes"] == 8
    assert summary["seconds"] == pytest.approx(int(8 * 1.72) * 256 / 22050, abs=1e-3)
    assert summary["rtf"] > 0
    assert summary["segments"][0]["text"] == "HELLO WORLD."


def test_presets_and_their_options(infer: list[str], tmp_path: Path) -> None:
    def samples(*words: str) -> np.ndarray:
        out = tmp_path / "speech.wav"
        assert main([*infer, "-t", "Hello world.", "-o", str(out), *words]) == 0
        return soundfile.read(out, dtype="int16")[0]

    plain = samples()
    assert np.array_equal(samples("--preset", "exact"), plain)
    every = ["--solver", "heun", "--sway", "-0.5", "--guidance-until", "0.5", "--prompt-seconds", "1"]
    for words in (["--preset", "fast"], [*every, "--flow-dtype", "bfloat16", "--gpt-weights", "full"]):
        changed = samples(*words)
        assert not np.array_equal(changed[: len(plain)], plain[: len(changed)])


def test_text_from_a_file_and_streaming_into_a_growing_file(infer: list[str], tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("This is one sentence. This is another one.", encoding="utf-8")
    whole, streamed = tmp_path / "whole.wav", tmp_path / "streamed.wav"
    common = [*infer, "--text-file", str(text), "--max-tokens", "10"]
    assert main([*common, "-o", str(whole)]) == 0
    assert main([*common, "-o", str(streamed), "--stream"]) == 0
    assert np.array_equal(soundfile.read(whole, dtype="int16")[0], soundfile.read(streamed, dtype="int16")[0])


@pytest.fixture
def tiny_infer(tiny_model: Path, reference: Path) -> list[str]:
    options = ["--max-codes", "30", "--max-tokens", "24", "--num-beams", "1", "--seed", "1", "--cpu"]
    return ["infer", "--model", str(tiny_model), "-s", str(reference / "inputs" / "spk.wav"), *options]


def test_low_latency_writes_and_plays_the_same_samples(
    tiny_infer: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import indextts2.audio.playback as playback

    played: list[np.ndarray] = []

    class Device:
        def __init__(self, sample_rate: int) -> None:
            self.write = played.append

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            played.append(np.zeros(0, np.float32))

    monkeypatch.setattr(playback, "Player", Device)
    out = tmp_path / "speech.wav"
    arguments = [*tiny_infer, "-t", "One is here. Two is here.", "-o", str(out), "--subtype", "FLOAT", "--json"]
    assert main([*arguments, "--stream", "low-latency", "--play"]) == 0
    summary = json.loads(capsys.readouterr().out)
    samples, rate = soundfile.read(out, dtype="float32")
    assert np.array_equal(np.concatenate(played), samples)
    assert summary["seconds"] == pytest.approx(len(samples) / rate, abs=1e-3)
    assert summary["mode"] == "low-latency"
    assert 0 < summary["timings"]["first_audio"] < summary["timings"]["total"]
    assert (summary["seed"], summary["codes"] > 0) == (1, True)
    whole = tmp_path / "whole.wav"
    assert main([*tiny_infer, "-t", "One is here. Two is here.", "-o", str(whole), "--subtype", "FLOAT"]) == 0
    assert len(soundfile.read(whole)[0]) == len(samples)


def test_a_text_is_spoken_while_it_arrives(tiny_infer: list[str]) -> None:
    """The first sentence is heard before the second one is written."""
    command = [sys.executable, "-m", "indextts2", *tiny_infer, "-t", "-", "-o", "-", "--stream", "low-latency"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("Déjà vu. Two".encode())
        process.stdin.flush()
        first = process.stdout.read(2000)
        process.stdin.write(b" is here.")
        process.stdin.close()
        rest = process.stdout.read()
        assert process.wait(120) == 0
    samples, rate = soundfile.read(io.BytesIO(first + rest))
    assert rate == 22050
    assert len(samples) > 2 * 30 * 256


def test_pipes_in_and_out(infer: list[str]) -> None:
    command = [sys.executable, "-m", "indextts2", *infer, "-t", "-", "-o", "-"]
    done = subprocess.run(command, input=b"Hello world.", capture_output=True, check=True, timeout=120)
    samples, rate = soundfile.read(io.BytesIO(done.stdout))
    assert (rate, len(samples)) == (22050, int(8 * 1.72) * 256)
    assert b"s of audio" in done.stderr


def test_emotion_options_reach_the_speech(infer: list[str], reference: Path, tmp_path: Path) -> None:
    emo = str(reference / "inputs" / "emo.wav")
    variants = {
        "plain": [],
        "names": ["--emotion", "angry:0.9"],
        "vector": ["--emotion-vector", "0,0.9,0,0,0,0,0,0"],
        "audio": ["--emotion-audio", emo],
        "half": ["--emotion-audio", emo, "--emotion-alpha", "0.5"],
    }
    heard = {}
    for name, extra in variants.items():
        out = tmp_path / f"{name}.wav"
        assert main([*infer, "-t", "Hello world.", "-o", str(out), *extra]) == 0
        heard[name] = soundfile.read(out, dtype="int16")[0]
    assert np.array_equal(heard["names"], heard["vector"])
    different = [heard[name].tobytes() for name in ("plain", "names", "audio", "half")]
    assert len(set(different)) == 4


def test_voice_make_show_and_use(
    infer: list[str], small_checkpoint: Path, reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice = tmp_path / "amy.safetensors"
    audio = str(reference / "inputs" / "spk.wav")
    assert main(["voice", "make", audio, "-o", str(voice), "--model", str(small_checkpoint), "--cpu"]) == 0
    capsys.readouterr()
    assert main(["voice", "show", str(voice), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["name"] == "amy"
    assert shown["tensors"]["style"] == [1, 192]
    outs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    assert main([*infer, "-t", "Hello world.", "-o", str(outs[0])]) == 0
    assert main([*infer, "-t", "Hello world.", "-o", str(outs[1]), "-s", str(voice)]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_info_and_check(small_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--model", str(small_checkpoint)]) == 0
    assert "GPT width, layers, heads" in capsys.readouterr().out
    assert main(["info", "-c", str(small_checkpoint / "config.yaml"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["config"]["gpt"]["model_dim"] == 128
    assert facts["parameters"]["campplus"] == 6_848_544
    assert main(["check", str(small_checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    assert main(["check", str(tmp_path)]) == 6


def test_convert_keeps_the_speech(infer: list[str], small_checkpoint: Path, tmp_path: Path) -> None:
    converted = tmp_path / "converted"
    assert main(["convert", str(small_checkpoint), str(converted)]) == 0
    outs = [tmp_path / "a.wav", tmp_path / "b.wav"]
    assert main([*infer, "-t", "Hello world.", "-o", str(outs[0])]) == 0
    assert main([*infer, "-t", "Hello world.", "-o", str(outs[1]), "--model", str(converted)]) == 0
    # The same weights at other addresses: rounding may differ by one step of 16 bits.
    before, after = (soundfile.read(out, dtype="int16")[0].astype(int) for out in outs)
    assert np.abs(before - after).max() <= 1


def test_an_unknown_device_is_refused(infer: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    command = [a for a in infer if a != "--cpu"]
    assert main([*command, "-t", "Hi there", "--device", "abacus"]) == 2
    assert "abacus" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*infer, "-t", "Hi there", "--device", "cpu"])


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["-t", "   "], 3, "nothing that can be spoken"),
        (["-t", "Hi there", "-s", "absent.wav"], 4, "absent.wav"),
        (["-t", "Hi there", "--steps", "0"], 5, "steps must lie"),
        (["-t", "Hi there", "--top-p", "1.5"], 5, "top_p"),
        (["-t", "Hi there", "--sway", "-2"], 5, "sway must lie"),
        (["-t", "Hi there", "--guidance-until", "1.5"], 5, "guidance_until must lie"),
        (["-t", "Hi there", "--prompt-seconds", "0.1"], 5, "prompt_seconds must be"),
        (["-t", "Hi there", "--model", "absent"], 6, "no model 'absent'"),
        (["-t", "Hi there", "--emotion", "joyful:1"], 2, "joyful"),
        (["-t", "Hi there", "--emotion-vector", "1,2"], 2, "8"),
        (["-t", "Hi there", "--emotion-alpha", "0.5"], 2, "none is given"),
        (["-t", "Hi there", "-o", "-", "--json"], 2, "standard output"),
        (["-t", "Hi there", "-o", "a.mp3", "--stream"], 2, "--stream writes WAV"),
        (["-t", "Hi there", "--plot", "a.png", "--stream"], 2, "leave --stream out"),
        (["-t", "Hi there", "--target-seconds", "1", "--stream", "low-latency"], 2, "target_seconds"),
        (["-t", "Hi there", "--subtype", "PCM_24", "--stream"], 4, "PCM_16 or FLOAT"),
        (["-t", "Hi there", "-o", "speech.exe"], 4, "exe"),
        (["--text-file", "absent.txt"], 3, "absent.txt"),
    ],
)
def test_a_users_mistake_is_one_line(
    infer: list[str], arguments: list[str], code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*infer, *arguments]) == code
    printed = capsys.readouterr().err.strip()
    assert message in printed
    assert "Traceback" not in printed
    assert len(printed.splitlines()) == 1


def test_without_a_reference_the_message_says_what_to_give(
    small_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("indextts2.inference.named_voices.named_voices", dict)
    assert main(["infer", "--model", str(small_checkpoint), "-t", "Hi there", *SHORT]) == 2
    assert "--speaker" in capsys.readouterr().err


def test_help_of_every_command_loads_nothing_heavy() -> None:
    code = (
        "import sys; from indextts2.cli.main import make_parser; make_parser(); "
        "print([m for m in ('torch', 'numpy', 'soundfile', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    for command in COMMANDS:
        with pytest.raises(SystemExit) as exit_:
            main([command, "--help"])
        assert exit_.value.code == 0


def test_without_a_model_the_message_says_what_to_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("indextts2.checkpoints.layout.installed_models", dict)
    assert main(["infer", "-t", "Hi there"]) == 6
    assert "--model" in capsys.readouterr().err
