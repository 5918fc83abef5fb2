"""Length regulator and projection of latents: golden arrays, the resize rule, padded batches, keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from indextts2.config import LengthRegulatorConfig
from indextts2.errors import GenerationError
from indextts2.models.s2mel.latent_projection import LatentProjection
from indextts2.models.s2mel.length_regulator import LengthRegulator, nearest_indices, target_mel_frames
from tests.conftest import golden_error, relative_l2
from tests.models.weights import assert_manifest_matches, fold_weight_norm, load_strictly

TINY = LengthRegulatorConfig(channels=6, in_channels=4)


@pytest.fixture(scope="module")
def regulator(small_config, small_states) -> LengthRegulator:
    module = LengthRegulator(small_config.s2mel.length_regulator)
    load_strictly(module, small_states["length_regulator"])
    return module


@pytest.fixture(scope="module")
def projection(small_config, small_states) -> LatentProjection:
    state = small_states["gpt_layer"]
    content_dim = small_config.s2mel.length_regulator.in_channels
    module = LatentProjection(small_config.gpt.model_dim, LatentProjection.inner_widths(state), content_dim)
    load_strictly(module, state)
    return module


def test_latent_projection_parity(projection: LatentProjection, golden):
    with torch.inference_mode():
        out = projection(torch.from_numpy(golden["gpt_latent"]))
    assert golden_error(out.numpy(), golden["gpt_layer_out"]) < 1e-5


def test_target_length_parity(small_config, golden):
    codes = torch.tensor([golden["gpt_layer_out"].shape[1]])
    assert target_mel_frames(codes, small_config.s2mel.frames_per_code).tolist() == golden["target_length"].tolist()


def test_target_length_rule():
    codes = torch.arange(4000)
    assert target_mel_frames(codes, 1.72).tolist() == [43 * m // 25 for m in range(4000)]


def test_target_condition_parity(regulator: LengthRegulator, golden):
    content = torch.from_numpy(golden["gpt_layer_out"] + golden["vq2emb"])
    with torch.inference_mode():
        cond = regulator(content, torch.from_numpy(golden["target_length"]))
    assert golden_error(cond.numpy(), golden["cond"]) < 1e-5


def test_prompt_condition_parity(regulator: LengthRegulator, small_checkpoint, golden):
    """The content of the prompt is known by its codes only: look them up in the codec's codebook."""
    state = fold_weight_norm(load_file(small_checkpoint / "hf_cache" / "semantic_codec_model.safetensors"))
    name = "quantizer.quantizers.0."
    rows = state[name + "codebook.weight"][torch.from_numpy(golden["ref_codes"])]
    content = F.linear(rows, state[name + "out_project.weight"].squeeze(-1), state[name + "out_project.bias"])
    assert golden_error(content.numpy(), golden["S_ref"]) < 1e-5
    with torch.inference_mode():
        condition = regulator(content, golden["ref_mel"].shape[-1])
    assert golden_error(condition.numpy(), golden["prompt_condition"]) < 1e-5


def test_nearest_indices_follow_float32():
    for source, target in [(7, 12), (40, 68), (121, 210), (199, 343), (1163, 2000), (5, 5), (9, 4)]:
        ratio = np.float32(source) / np.float32(target)
        expected = [min(math.floor(np.float32(u) * ratio), source - 1) for u in range(target)]
        actual = nearest_indices(torch.tensor([source]), torch.tensor([target]), target)
        assert actual[0].tolist() == expected


def test_nearest_indices_equal_torch():
    """The rule is that of interpolation by nearest neighbour."""
    for source in range(1, 160, 3):
        for target in range(1, 300, 7):
            ramp = torch.arange(source, dtype=torch.float32)[None, None]
            expected = torch.nn.functional.interpolate(ramp, size=target, mode="nearest")[0, 0]
            actual = nearest_indices(torch.tensor([source]), torch.tensor([target]), target)
            assert actual[0].tolist() == expected.long().tolist()


def test_padded_batch_equals_single_items():
    torch.manual_seed(0)
    module = LengthRegulator(TINY).double()
    for parameter in module.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    x = 100 * torch.ones(3, 9, TINY.in_channels, dtype=torch.float64)
    lengths, targets = torch.tensor([9, 4, 1]), torch.tensor([11, 17, 2])
    singles = [torch.randn(1, n, TINY.in_channels, dtype=torch.float64) for n in lengths.tolist()]
    for item, single in zip(x, singles, strict=True):
        item[: single.shape[1]] = single[0]
    batch = module(x, targets, lengths)
    assert batch.shape == (3, 17, TINY.channels)
    for i, single in enumerate(singles):
        expected = module(single, targets[i : i + 1])
        torch.testing.assert_close(batch[i : i + 1, : targets[i]], expected, rtol=0, atol=1e-12)
        assert not batch[i, targets[i] :].any()


def test_inference_equals_training():
    torch.manual_seed(0)
    module = LengthRegulator(LengthRegulatorConfig(channels=64, in_channels=24))
    arguments = torch.randn(2, 90, 24), torch.tensor([150, 101]), torch.tensor([90, 60])
    for x in (arguments, (arguments[0][:1], 150)):
        expected = module.requires_grad_(True)(*x).detach()
        with torch.inference_mode():
            assert relative_l2(module.requires_grad_(False)(*x), expected) < 1e-5


def test_every_parameter_gets_a_gradient():
    torch.manual_seed(0)
    module = LengthRegulator(TINY)
    out = module(torch.randn(2, 5, TINY.in_channels), torch.tensor([8, 6]), torch.tensor([5, 4]))
    (out * torch.randn_like(out)).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


@pytest.mark.parametrize(("target", "length"), [(0, 3), (4, 0)])
def test_empty_items_are_refused(target: int, length: int):
    with pytest.raises(GenerationError, match="must be at least 1"):
        LengthRegulator(TINY)(torch.zeros(1, 3, TINY.in_channels), torch.tensor([target]), torch.tensor([length]))


@pytest.mark.parametrize("size", ["small", "full"])
def test_keys(manifests, configs, size: str):
    config = configs[size]
    with torch.device("meta"):
        regulator = LengthRegulator(config.s2mel.length_regulator)
        inner = {"small": (32, 16), "full": (256, 128)}[size]
        projection = LatentProjection(config.gpt.model_dim, inner, config.s2mel.length_regulator.in_channels)
    assert_manifest_matches(regulator, manifests[size], "length_regulator.")
    assert_manifest_matches(projection, manifests[size], "gpt_layer.")
