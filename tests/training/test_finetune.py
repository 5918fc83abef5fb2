"""Fine-tuning on the small reference model: the loss falls, and the saved adapter changes what `infer` says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from indextts2 import IndexTTS2
from indextts2.checkpoints.adapters import Adapter
from indextts2.cli.main import main
from indextts2.errors import CheckpointError, ConfigError
from indextts2.models.gpt.lora import add_adapters, merge_adapters
from indextts2.models.gpt.transformer import GPT2Stack
from indextts2.training.finetune import read_manifest


@pytest.fixture
def manifest(reference: Path, tmp_path: Path) -> Path:
    """Two short clips of one speaker, cut from the reference recording."""
    samples, rate = soundfile.read(reference / "inputs" / "spk.wav")
    for number, text in enumerate(("Hello world.", "This is a test.")):
        soundfile.write(tmp_path / f"{number}.wav", samples[number * rate // 4 : (number + 4) * rate // 4], rate)
        with (tmp_path / "manifest.jsonl").open("a") as file:
            file.write(json.dumps({"path": f"{number}.wav", "text": text, "speaker": "a"}) + "\n")
    return tmp_path / "manifest.jsonl"


def test_the_loss_falls_and_the_adapter_speaks(
    small_checkpoint: Path, reference: Path, manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    command = ["train", "finetune", "--work", str(work), "--model", str(small_checkpoint), "--manifest", str(manifest)]
    assert main([*command, "--steps", "40", "--learning-rate", "0.02", "--precision", "float32"]) == 0
    result = json.loads(capsys.readouterr().out)
    lines = [json.loads(line) for line in (work / "finetune" / "losses.jsonl").read_text().splitlines()]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert np.isfinite(result["training_loss"])

    speak = [
        "infer",
        "--model",
        str(small_checkpoint),
        "-s",
        str(reference / "inputs" / "spk.wav"),
        "-t",
        "Hello world.",
    ]
    options = ["--max-codes", "8", "--steps", "1", "--greedy", "--num-beams", "1", "--cpu"]
    heard = []
    for extra in ([], ["--lora", result["adapter"]]):
        out = tmp_path / f"{len(heard)}.wav"
        assert main([*speak, *options, *extra, "-o", str(out)]) == 0
        heard.append(out.read_bytes())
    assert heard[0] != heard[1]


def test_merged_weights_equal_trained_ones() -> None:
    torch.manual_seed(0)
    trained, merged = (GPT2Stack(16, 2, 2) for _ in range(2))
    merged.load_state_dict(trained.state_dict())
    adapters = add_adapters(trained, rank=2, scale=0.5)
    assert {name for name, p in trained.named_parameters() if ".a" in name or ".b" in name}
    for parameter in adapters.parameters():
        torch.nn.init.normal_(parameter)
    tensors = {f"{n.replace('/', '.')}.{p}": getattr(m, p).detach() for n, m in adapters.items() for p in ("a", "b")}
    merge_adapters(merged, tensors, scale=0.5)
    x = torch.randn(1, 5, 16)
    assert torch.allclose(trained(x), merged(x), atol=1e-5)


def test_an_adapter_that_does_not_fit_is_refused(small_checkpoint: Path, tmp_path: Path) -> None:
    tts = IndexTTS2.from_pretrained(small_checkpoint, device="cpu")
    other = Adapter({"h.0.attn.c_attn.a": torch.zeros(3, 1)}, 1.0, "0" * 32).save(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="trained for model 000000000000"):
        tts.load_adapter(other)
    incomplete = Adapter({"h.0.attn.c_attn.a": torch.zeros(128, 1)}, 1.0, tts.models.fingerprint)
    with pytest.raises(CheckpointError, match="differ in"):
        tts.load_adapter(incomplete.save(tmp_path / "incomplete.safetensors"))
    stack = tts.models.gpt.gpt
    zeros = {
        f"{name}.{part}": torch.zeros((3, 1) if part == "a" else (1, 3))
        for name in [f"h.{i}.{t}" for i in range(4) for t in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")]
        for part in ("a", "b")
    }
    with pytest.raises(CheckpointError, match="do not fit"):
        merge_adapters(stack, zeros, 1.0)
    (tmp_path / "junk.safetensors").write_bytes(b"junk")
    with pytest.raises(CheckpointError, match="cannot read the adapter"):
        Adapter.load(tmp_path / "junk.safetensors")


@pytest.mark.parametrize("content", ["", "not json\n", '{"path": "a.wav", "text": "x"}\n'])
def test_a_wrong_manifest_names_its_line(tmp_path: Path, content: str) -> None:
    path = tmp_path / "manifest.jsonl"
    path.write_text(content)
    with pytest.raises(ConfigError, match="manifest"):
        read_manifest(path)
