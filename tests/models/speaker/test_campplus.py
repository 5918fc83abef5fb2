"""CAM++ against golden arrays stage by stage, its masking against the plain formula, and its training path."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts2.config import CampPlusConfig
from indextts2.errors import AudioError, ConfigError, UsageError
from indextts2.models.speaker.campplus import CampPlus, ContextAwareMask, statistics_pooling
from tests.conftest import Golden, golden_error, relative_l2

FILE = "hf_cache/campplus_cn_common.bin"
TINY = CampPlusConfig(
    feat_dim=20,
    embedding_size=12,
    head_channels=4,
    initial_channels=16,
    growth_rate=8,
    bottleneck_channels=10,
    block_layers=(2, 3),
    block_dilations=(1, 2),
    segment_frames=7,
)


@pytest.fixture(scope="module")
def model(small_checkpoint: Path) -> CampPlus:
    model = CampPlus(CampPlusConfig())
    tensors = torch.load(small_checkpoint / FILE, weights_only=True)
    model.load_state_dict({k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")})
    return model.eval()


@pytest.fixture
def fbank(golden: Golden) -> torch.Tensor:
    values = golden["fbank"]
    assert isinstance(values, np.ndarray)
    return torch.from_numpy(values - values.mean(axis=0, keepdims=True)).unsqueeze(0)


@pytest.fixture
def tiny() -> CampPlus:
    torch.manual_seed(0)
    return CampPlus(TINY)


def test_every_stage_matches_golden(model: CampPlus, fbank: torch.Tensor, golden: Golden) -> None:
    outputs: dict[str, torch.Tensor] = {}
    stages = {
        "camp_head": model.head,
        "camp_tdnn": model.xvector["tdnn"],
        "camp_block1": model.xvector["block1"],
        "last_nonlinear": model.xvector["out_nonlinear"],
    }
    handles = [
        stage.register_forward_hook(lambda _m, _i, out, name=name: outputs.__setitem__(name, out))
        for name, stage in stages.items()
    ]
    with torch.inference_mode():
        style = model(fbank)
    for handle in handles:
        handle.remove()
    outputs["camp_stats"] = statistics_pooling(outputs.pop("last_nonlinear"))
    for name in ("camp_tdnn", "camp_block1"):
        outputs[name] = outputs[name].transpose(1, 2)
    for name, output in outputs.items():
        assert golden_error(output, golden[name]) < 1e-5, name
    assert golden_error(style, golden["style"]) < 1e-5


@pytest.mark.parametrize("size", ["small", "full"])
def test_state_dict_is_the_checkpoint(reference: Path, size: str) -> None:
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in CampPlus(CampPlusConfig()).state_dict().items()}
    entries = json.loads((reference / f"manifest_{size}.json").read_text())[FILE]
    expected = {
        key: tuple(shape)
        for key, (shape, *_) in entries.items()
        if not any(re.fullmatch(pattern, key) for pattern in CampPlus.UNUSED_KEYS)
    }
    assert shapes == expected


def test_inference_path_equals_training_path(model: CampPlus, fbank: torch.Tensor) -> None:
    frozen = copy.deepcopy(model).requires_grad_(False)
    with torch.no_grad():
        written = frozen(fbank)
    assert relative_l2(written, model(fbank).detach()) < 1e-6


def test_statistics_of_training_take_effect(tiny: CampPlus) -> None:
    """What inference keeps of the weights and statistics follows them."""
    tiny.requires_grad_(False)
    x = torch.randn(2, 61, 20)
    for _ in range(2):
        with torch.no_grad():
            tiny.train()(x + 1)
            found = tiny.eval()(x)
        assert relative_l2(found, copy.deepcopy(tiny).requires_grad_(True)(x).detach()) < 1e-6


@pytest.mark.parametrize("frames", [2, 6, 7, 8, 20, 21])
def test_mask_is_the_plain_formula(frames: int) -> None:
    torch.manual_seed(0)
    layer = ContextAwareMask(10, 8, dilation=2, segment_frames=7)
    x = torch.randn(2, frames, 10)
    context = torch.empty_like(x)
    for t in range(frames):
        start = t // 7 * 7
        context[:, t] = x.mean(dim=1) + x[:, start : start + 7].mean(dim=1)
    with torch.no_grad():
        gate = torch.sigmoid(layer.linear2(torch.relu(layer.linear1(context))))
        assert relative_l2(layer(x), layer.linear_local(x) * gate) < 1e-6


def test_batch_equals_single(tiny: CampPlus) -> None:
    tiny.eval()
    x = torch.randn(3, 61, 20)
    with torch.inference_mode():
        batch = tiny(x)
        for row in range(3):
            assert relative_l2(batch[row], tiny(x[row : row + 1])[0]) < 1e-5


@pytest.mark.parametrize("frames", [3, 4, 5, 40, 41])
def test_odd_and_even_lengths(tiny: CampPlus, frames: int) -> None:
    with torch.inference_mode():
        style = tiny.eval()(torch.randn(1, frames, 20))
    assert style.shape == (1, 12)
    assert torch.isfinite(style).all()


def test_gradient_and_running_statistics(tiny: CampPlus) -> None:
    before = {name: value.clone() for name, value in tiny.named_buffers()}
    with torch.no_grad():
        tiny.xvector["out_nonlinear"].batchnorm.bias[0] = -1e3  # a channel that ReLU shuts: its deviation is 0
    tiny(torch.randn(4, 50, 20)).square().sum().sub(1.0).square().backward()
    for name, parameter in tiny.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert all(not torch.equal(value, before[name]) for name, value in tiny.named_buffers())
    tiny.eval()
    frozen = {name: value.clone() for name, value in tiny.named_buffers()}
    tiny(torch.randn(1, 50, 20))
    assert all(torch.equal(value, frozen[name]) for name, value in tiny.named_buffers())


def test_bad_arguments_are_typed_errors(tiny: CampPlus) -> None:
    with pytest.raises(AudioError, match="at least 3"):
        tiny(torch.zeros(1, 2, 20))
    with pytest.raises(UsageError, match="20"):
        tiny(torch.zeros(1, 50, 21))
    with pytest.raises(ConfigError, match="block_dilations"):
        CampPlus(replace(TINY, block_dilations=(1,)))
