import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from indextts2.checkpoints.loading import Models, load_models
from indextts2.checkpoints.official import MODULES
from indextts2.errors import CheckpointError, UsageError
from tests.checkpoints.conftest import TINY


def assert_equal_state(module: nn.Module, expected: nn.Module) -> None:
    actual, wanted = module.state_dict(), expected.state_dict()
    assert actual.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(actual[key], value), key


def edit(path: Path, change: Callable[[Any], Any]) -> None:
    """Load a pickle, change it and write it back."""
    content = torch.load(path, weights_only=True)
    result = change(content)
    torch.save(content if result is None else result, path)


def without(mapping: dict[str, Any], key: str) -> None:
    del mapping[key]


@pytest.mark.parametrize("form", ["tiny_official", "tiny_converted"])
def test_both_layouts_give_the_same_modules(
    request: pytest.FixtureRequest,
    form: str,
    tiny_modules: dict[str, nn.Module],
    tiny_constants: dict[str, torch.Tensor],
) -> None:
    models = load_models(request.getfixturevalue(form), "cpu")
    assert tuple(models.modules) == MODULES
    for name in MODULES:
        assert_equal_state(models.module(name), tiny_modules[name])
        assert not models.module(name).training
        assert not any(p.requires_grad for p in models.module(name).parameters())
    assert models.config == TINY
    assert torch.equal(models.feature_statistics.mean, tiny_constants["mean"])
    assert torch.equal(models.emotion_matrices.emotion, tiny_constants["emotion_matrix"])
    assert torch.equal(models.emotion_matrices.speaker, tiny_constants["speaker_matrix"])
    assert models.tokenizer_file is not None and models.tokenizer_file.read_bytes() == b"pieces"
    assert models.gpt is models.modules["gpt"] and models.bigvgan is models.modules["bigvgan"]


def test_only_some_modules(tiny_official: Path) -> None:
    (tiny_official / "gpt.pth").unlink()
    (tiny_official / "gpt.pth").touch()  # would not load
    models = load_models(tiny_official, "cpu", only=["dit", "bigvgan"])
    assert set(models.modules) == {"dit", "bigvgan"}
    with pytest.raises(CheckpointError, match="gpt was not loaded"):
        _ = models.gpt
    with pytest.raises(UsageError, match="unknown modules"):
        load_models(tiny_official, "cpu", only=["vocoder"])


def test_gpt_may_run_in_half_precision_the_others_not(tiny_official: Path) -> None:
    models = load_models(tiny_official, "cpu", "bfloat16")
    assert {p.dtype for p in models.gpt.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in models.dit.parameters()} == {torch.float32}
    with pytest.raises(UsageError, match="float16 is not supported on the CPU"):
        load_models(tiny_official, "cpu", "float16")
    with pytest.raises(UsageError, match="not a device"):
        load_models(tiny_official, "toaster")


def test_half_precision_files_compute_in_float32(tiny_official: Path, tiny_modules: dict[str, nn.Module]) -> None:
    edit(tiny_official / "gpt.pth", lambda c: {k: v.half() for k, v in c["model"].items()})
    gpt = load_models(tiny_official, "cpu", only=["gpt"]).gpt
    expected = tiny_modules["gpt"].mel_head.weight.half().float()
    assert torch.equal(gpt.mel_head.weight, expected)
    assert {p.dtype for p in gpt.parameters()} == {torch.float32}


def test_bare_state_dict_and_prefixes(tiny_official: Path, tiny_modules: dict[str, nn.Module]) -> None:
    edit(tiny_official / "gpt.pth", lambda c: {k.removeprefix("module."): v for k, v in c["model"].items()})
    path = tiny_official / "hf_cache/w2v-bert-2.0/model.safetensors"
    tensors = {f"wav2vec2_bert.{k}": v.clone() for k, v in load_file(path).items()}
    later = {k.replace("layers.1", "layers.2"): v.clone() for k, v in tensors.items() if "layers.1" in k}
    save_file({**tensors, **later, "wav2vec2_bert.masked_spec_embed": torch.zeros(32)}, path)
    models = load_models(tiny_official, "cpu", only=["gpt", "w2v_bert"])
    assert_equal_state(models.gpt, tiny_modules["gpt"])
    assert_equal_state(models.w2v_bert, tiny_modules["w2v_bert"])


def test_weight_norm_is_folded(tiny_official: Path, tiny_modules: dict[str, nn.Module]) -> None:
    def split(content: dict[str, Any]) -> None:
        weight = content["generator"].pop("ups.0.0.weight")
        content["generator"]["ups.0.0.weight_v"] = weight * 3
        content["generator"]["ups.0.0.weight_g"] = weight.norm(dim=(1, 2), keepdim=True)

    edit(tiny_official / "hf_cache/bigvgan/bigvgan_generator.pt", split)
    up = load_models(tiny_official, "cpu", only=["bigvgan"]).bigvgan.ups[0][0]
    torch.testing.assert_close(up.weight, tiny_modules["bigvgan"].ups[0][0].weight, rtol=1e-5, atol=1e-6)


BROKEN: dict[str, tuple[str, Callable[[Any], Any], str]] = {
    "missing key": ("gpt.pth", lambda c: without(c["model"], "module.mel_head.bias"), r"missing keys: mel_head\.bias"),
    "unknown key": ("gpt.pth", lambda c: c["model"].update({"module.x": torch.zeros(1)}), r"unknown keys: x \[1\]"),
    "no prefix": ("gpt.pth", lambda c: c["model"].update({"x": torch.zeros(1)}), "key x does not start with 'module.'"),
    "wrong shape": (
        "s2mel.pth",
        lambda c: c["net"]["length_regulator"].update({"content_in_proj.bias": torch.zeros(15)}),
        r"content_in_proj\.bias has shape \[15\] instead of \[16\]",
    ),
    "no module": ("s2mel.pth", lambda c: without(c["net"], "cfm"), r"net\.cfm is missing"),
    "no net": ("s2mel.pth", lambda c: {"model": c["net"]}, "no entry 'net'"),
    "strange top": ("s2mel.pth", lambda c: c.update({"surprise": 1}), r"unknown entries \['surprise'\]"),
    "no tensor": ("gpt.pth", lambda c: c["model"].update({"module.x": "text"}), "must be a dense tensor, not str"),
    "no projection": ("s2mel.pth", lambda c: c["net"].update({"gpt_layer": {}}), "gpt_layer holds"),
    "no generator": ("hf_cache/bigvgan/bigvgan_generator.pt", lambda c: c["generator"], "no entry 'generator'"),
    "statistics": ("wav2vec2bert_stats.pt", lambda c: {"mean": c["mean"]}, "it must hold"),
    "negative variance": ("wav2vec2bert_stats.pt", lambda c: c | {"var": -c["var"]}, "var must be above 0"),
    "matrix rows": ("feat1.pt", lambda c: c[:-1], r"speaker_matrix has shape \[72, 24\] instead of \[73, 24\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tiny_official: Path, case: str) -> None:
    file, change, message = BROKEN[case]
    edit(tiny_official / file, change)
    with pytest.raises(CheckpointError, match=message):
        load_models(tiny_official, "cpu")


def test_further_modules_of_s2mel_are_left_out_with_a_warning(
    tiny_official: Path, caplog: pytest.LogCaptureFixture
) -> None:
    edit(tiny_official / "s2mel.pth", lambda c: c["net"].update({"discriminator": {"a": torch.zeros(1)}}))
    load_models(tiny_official, "cpu", only=["dit"])
    assert "discriminator" in caplog.text


def test_random_generator_is_left_alone(tiny_official: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_models(tiny_official, "cpu")
    assert torch.equal(torch.rand(3), expected)


def test_fingerprint_follows_the_weights(tiny_official: Path) -> None:
    first = load_models(tiny_official, "cpu", only=["codec"])
    assert load_models(tiny_official, "cpu", only=["dit"]).fingerprint == first.fingerprint
    edit(tiny_official / "feat2.pt", lambda c: c.detach() + 1)
    assert load_models(tiny_official, "cpu", only=["codec"]).fingerprint != first.fingerprint


def test_the_small_reference_checkpoint_loads_quickly(small_checkpoint: Path) -> None:
    start = time.perf_counter()
    models = load_models(small_checkpoint, "cpu")
    assert time.perf_counter() - start < 20
    assert models.config.s2mel.latent_projection == (32, 16)
    assert len(models.w2v_bert.encoder.layers) == 3
    assert isinstance(models, Models) and dataclasses.replace(models, fingerprint="x").fingerprint == "x"


def test_computed_buffers_in_the_files_change_nothing(reference: Path, tmp_path: Path, small_checkpoint: Path) -> None:
    """The published files may carry counters and tables, which are never read."""
    folder = shutil.copytree(small_checkpoint, tmp_path / "c")
    edit(folder / "s2mel.pth", lambda c: c["net"]["cfm"].update({"estimator.input_pos": torch.arange(16384)}))
    edit(folder / "gpt.pth", lambda c: c.update({"conditioning_encoder.embed.pos_enc.pe": torch.zeros(1, 5000, 64)}))
    edit(
        folder / "hf_cache/campplus_cn_common.bin",
        lambda c: c.update({"head.bn1.num_batches_tracked": torch.tensor(9)}),
    )
    names = ["dit", "gpt", "campplus"]
    plain, carrying = (load_models(path, "cpu", only=names) for path in (small_checkpoint, folder))
    for name in names:
        left, right = plain.module(name).state_dict(), carrying.module(name).state_dict()
        assert all(torch.equal(left[key], right[key]) for key in left if not key.endswith("num_batches_tracked"))
