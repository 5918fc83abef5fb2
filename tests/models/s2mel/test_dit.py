"""The DiT: golden arrays of step 0, exact removals, padded batches, gradients, keys."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from indextts2.config import DiTConfig, LengthRegulatorConfig, S2MelConfig, WaveNetConfig
from indextts2.errors import ConfigError
from indextts2.models.s2mel.dit import Condition, DiT
from indextts2.models.s2mel.transformer import FeedForward, rotary_table, rotate
from indextts2.models.s2mel.wavenet import conv_frames, reflect_pad
from tests.conftest import golden_error
from tests.models.weights import assert_manifest_matches, load_strictly

TINY = S2MelConfig(
    style_dim=3,
    length_regulator=LengthRegulatorConfig(channels=7),
    dit=DiTConfig(hidden_dim=16, num_heads=2, depth=5, in_channels=4, content_dim=7),
    wavenet=WaveNetConfig(hidden_dim=12, num_layers=3),
)


def tiny(config: S2MelConfig = TINY) -> DiT:
    torch.manual_seed(5)
    model = DiT(config).double()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def inputs(batch: int, frames: int, prompt: int, config: S2MelConfig = TINY) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(frames)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    x = draw(batch, frames, config.dit.in_channels)
    x[:, :prompt] = 0
    return {
        "x": x,
        "prompt_mel": draw(batch, prompt, config.dit.in_channels),
        "mu": draw(batch, frames, config.dit.content_dim),
        "style": draw(batch, config.style_dim),
    }


def velocity(model: DiT, x: Tensor, t: Tensor, first_frame: int = 0, **rest: Tensor | None) -> Tensor:
    condition = model.condition(rest["prompt_mel"], rest["mu"], rest["style"], rest.get("lengths"))
    return model.velocity(x, condition, model.time_tables(t), first_frame)


@pytest.fixture(scope="module")
def dit(small_config, small_states) -> DiT:
    model = DiT(small_config.s2mel)
    state = {key.removeprefix("estimator."): value for key, value in small_states["cfm"].items()}
    load_strictly(model, state)
    return model


def test_parity_of_one_evaluation(dit: DiT, golden):
    mu = torch.from_numpy(golden["prompt_condition"]), torch.from_numpy(golden["cond"])
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        return lambda _m, _i, out: seen.__setitem__(name, out.clone())

    hooks = [
        dit.t_embedder.register_forward_hook(keep("dit_t1")),
        dit.transformer.register_forward_pre_hook(lambda _m, args: seen.__setitem__("dit_x_in", args[0].clone())),
        dit.transformer.layers[0].register_forward_hook(keep("dit_layer0")),
        dit.transformer.register_forward_hook(keep("dit_transformer")),
        dit.skip_linear.register_forward_hook(keep("dit_skip_linear")),
        dit.wavenet.register_forward_hook(keep("dit_wavenet")),
        dit.final_layer.register_forward_hook(keep("dit_final_layer")),
    ]
    x = torch.from_numpy(golden["cfm_x_step0"]).transpose(1, 2)
    prompt = torch.from_numpy(golden["ref_mel"]).transpose(1, 2)
    with torch.inference_mode():
        condition = dit.condition(prompt, torch.cat(mu, 1), torch.from_numpy(golden["style"]))
        tables = dit.time_tables(torch.zeros(1))
        out = dit.velocity(torch.cat((x, x)), dit.with_null_branch(condition), tables)
    for hook in hooks:
        hook.remove()
    seen["dit_t1"] = seen["dit_t1"].expand(2, -1)
    seen["dit_wavenet"] = seen["dit_wavenet"].transpose(1, 2)
    for name, value in seen.items():
        assert golden_error(value.numpy(), golden[name]) < 1e-5, name
    assert golden_error(out.transpose(1, 2).numpy(), golden["cfm_v_step0"]) < 1e-5


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("prompt", [3, 20])
def test_slices_equal_the_full_computation(depth: int, prompt: int):
    model = tiny(dataclasses.replace(TINY, dit=dataclasses.replace(TINY.dit, depth=depth)))
    values, t = inputs(2, 31, prompt), torch.tensor([0.3], dtype=torch.float64)
    with torch.inference_mode():
        full = velocity(model, t=t, **values)
        sliced = velocity(model, t=t, first_frame=prompt, **values)
    torch.testing.assert_close(sliced, full[:, prompt:], rtol=0, atol=1e-12)


def test_a_shorter_reach_would_be_wrong(monkeypatch: pytest.MonkeyPatch):
    model, values, t = tiny(), inputs(1, 40, 25), torch.tensor([0.3], dtype=torch.float64)
    assert model.wavenet.reach == 6
    with torch.inference_mode():
        full = velocity(model, t=t, **values)
        monkeypatch.setattr(type(model.wavenet), "reach", 5)
        sliced = velocity(model, t=t, first_frame=25, **values)
    assert (sliced - full[:, 25:]).abs().max() > 1e-9


def test_published_reach_is_16_frames(configs):
    with torch.device("meta"):
        assert DiT(configs["full"].s2mel).wavenet.reach == 16


@pytest.mark.parametrize("dilation_rate", [1, 2])
def test_padded_batch_equals_single_items(dilation_rate: int):
    model = tiny(dataclasses.replace(TINY, wavenet=dataclasses.replace(TINY.wavenet, dilation_rate=dilation_rate)))
    lengths, t = torch.tensor([25, 17, 21]), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    values = inputs(3, 25, 4)
    with torch.inference_mode():
        batch = velocity(model, t=t, lengths=lengths, **values)
        for i, length in enumerate(lengths.tolist()):
            single = {
                name: v[i : i + 1, :length] if name in ("x", "mu") else v[i : i + 1] for name, v in values.items()
            }
            expected = velocity(model, t=t[i : i + 1], **single)
            torch.testing.assert_close(batch[i : i + 1, :length], expected, rtol=0, atol=1e-12)


def test_one_time_row_serves_a_batch():
    model, values = tiny(), inputs(2, 12, 4)
    one, two = (torch.full((n,), 0.4, dtype=torch.float64) for n in (1, 2))
    with torch.inference_mode():
        torch.testing.assert_close(
            velocity(model, t=one, **values), velocity(model, t=two, **values), rtol=0, atol=1e-13
        )


def test_time_rows_equal_single_times():
    model = tiny()
    times = torch.linspace(0, 1, 5, dtype=torch.float64)
    tables = model.time_tables(times)
    for i in range(5):
        for row, expected in zip(tables.row(i), model.time_tables(times[i : i + 1]), strict=True):
            torch.testing.assert_close(row, expected, rtol=0, atol=1e-13)


def test_null_branch_is_the_branch_without_prompt_condition_and_style():
    model, values = tiny(), inputs(2, 12, 4)
    condition = model.condition(values["prompt_mel"], values["mu"], values["style"])
    zeros = {name: torch.zeros_like(values[name]) for name in ("prompt_mel", "mu", "style")}
    expected = model.condition(zeros["prompt_mel"], zeros["mu"], zeros["style"])
    doubled = model.with_null_branch(condition)
    torch.testing.assert_close(doubled.constant[:2], condition.constant)
    torch.testing.assert_close(doubled.constant[2:], expected.constant)


def test_constant_input_equals_the_merged_concatenation():
    model, v = tiny(), inputs(2, 12, 5)
    prompt = torch.nn.functional.pad(v["prompt_mel"], (0, 0, 0, 7))
    style = v["style"][:, None].expand(-1, 12, -1)
    expected = model.cond_x_merge_linear(torch.cat((v["x"], prompt, model.cond_projection(v["mu"]), style), -1))
    seen = []
    model.transformer.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    velocity(model, t=torch.zeros(1, dtype=torch.float64), **v)
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=1e-12)


def test_every_parameter_gets_a_gradient():
    model, values = tiny(), inputs(2, 14, 4)
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    out = velocity(model, t=t, lengths=torch.tensor([14, 11]), **values)
    (out * torch.randn_like(out)).sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_short_sequences_are_mirrored_after_zeros():
    y = torch.tensor([[[1.0], [2.0]]])
    assert reflect_pad(y, 2, None)[0, :, 0].tolist() == [0.0, 2.0, 1.0, 2.0, 0.0, 2.0]
    y = torch.arange(4.0)[None, :, None]
    assert reflect_pad(y, 2, None)[0, :, 0].tolist() == [2, 1, 0, 1, 2, 3, 2, 1]
    assert reflect_pad(y, 2, torch.tensor([3]))[0, :7, 0].tolist() == [2, 1, 0, 1, 2, 1, 0]


def test_conv_frames_equals_conv1d():
    y, weight = torch.randn(2, 15, 6, dtype=torch.float64), torch.randn(8, 6, 5, dtype=torch.float64)
    for dilation in (1, 2):
        expected = torch.nn.functional.conv1d(y.transpose(1, 2), weight, dilation=dilation).transpose(1, 2)
        torch.testing.assert_close(conv_frames(y, weight, dilation), expected, rtol=0, atol=1e-12)


def test_rotation_depends_on_distance_only():
    q, k = (torch.randn(1, 1, 1, 8, dtype=torch.float64).expand(1, 30, 1, 8) for _ in range(2))
    table = rotary_table(30, 8, q)
    scores = torch.einsum("btnd,bsnd->ts", rotate(q, table), rotate(k, table))
    torch.testing.assert_close(scores[3, 7], scores[20, 24], rtol=0, atol=1e-5)
    torch.testing.assert_close(scores[5, 5], (q[0, 0] * k[0, 0]).sum(), rtol=0, atol=1e-5)


def test_feed_forward_size_rule():
    sizes = {width: FeedForward(width).w1.out_features for width in (64, 128, 512)}
    assert sizes == {64: 256, 128: 512, 512: 1536}


@pytest.mark.parametrize("size", ["small", "full"])
def test_keys(manifests, configs, size: str):
    with torch.device("meta"):
        model = DiT(configs[size].s2mel)
    assert_manifest_matches(model, manifests[size], "cfm.estimator.")
    used = [layer for layer in model.transformer.layers if layer.skip_in_linear is not None]
    assert len(used) == len(model.transformer.layers) // 2


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("dit", {"num_heads": 3}, "multiple of 2"),
        ("dit", {"content_dim": 8}, "must be equal"),
        ("wavenet", {"kernel_size": 4}, "must be odd"),
        ("wavenet", {"num_layers": 0}, "at least 1"),
    ],
)
def test_impossible_sizes_are_refused(part: str, change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        DiT(dataclasses.replace(TINY, **{part: dataclasses.replace(getattr(TINY, part), **change)}))


def test_condition_is_a_value():
    model, v = tiny(), inputs(1, 9, 2)
    condition = model.condition(v["prompt_mel"], v["mu"], v["style"])
    assert isinstance(condition, Condition) and condition.key_mask is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        condition.constant = None
