import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from indextts2.checkpoints.config_files import read_bigvgan_json, read_w2v_bert_json
from indextts2.checkpoints.keys import plain_name, plan_keys
from indextts2.checkpoints.loading import fill
from indextts2.checkpoints.modules import build_empty, complete_config
from indextts2.checkpoints.official import MODULES, Stored
from indextts2.config import ModelConfig, load_yaml, parse_model_config
from indextts2.errors import CheckpointError

# Where the manifest keeps each module, and the prefix of its keys there.
PLACES = {
    "w2v_bert": ("hf_cache/w2v-bert-2.0/model.safetensors", ""),
    "codec": ("hf_cache/semantic_codec_model.safetensors", ""),
    "campplus": ("hf_cache/campplus_cn_common.bin", ""),
    "gpt": ("gpt.pth", ""),
    "latent_projection": ("s2mel.pth", "gpt_layer."),
    "length_regulator": ("s2mel.pth", "length_regulator."),
    "dit": ("s2mel.pth", "cfm.estimator."),
    "bigvgan": ("hf_cache/bigvgan/bigvgan_generator.pt", "generator."),
}
# Parameters that inference uses at full size (spec 05 to 08, 10 section 1).
FULL_PARAMETERS = {"w2v_bert": 411_230_080, "campplus": 6_848_544, "latent_projection": 492_928}


class Toy(nn.Module):
    UNUSED_KEYS = (r"old\..+",)

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 4, 5)
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("table", torch.arange(7.0), persistent=False)


def toy_shapes() -> dict[str, tuple[int, ...]]:
    return {
        "conv.weight": (4, 3, 5), "conv.bias": (4,), "norm.weight": (4,), "norm.bias": (4,),
        "norm.running_mean": (4,), "norm.running_var": (4,),
    }  # fmt: skip


def full_shapes(reference: Path, name: str, size: str = "full") -> dict[str, tuple[int, ...]]:
    manifest = json.loads((reference / f"manifest_{size}.json").read_text())
    file, prefix = PLACES[name]
    return {k.removeprefix(prefix): tuple(v[0]) for k, v in manifest[file].items() if k.startswith(prefix)}


def full_config(reference: Path, size: str = "full") -> ModelConfig:
    folder = reference / "checkpoint_files"
    layer = json.loads((reference / "inputs" / "plan.json").read_text())["semantic_output_layer"][size]
    config = parse_model_config(load_yaml(folder / f"config_{size}.yaml") | {"semantic_output_layer": layer})
    config = dataclasses.replace(
        config,
        w2v_bert=read_w2v_bert_json(folder / f"w2v_bert_{size}.json"),
        bigvgan=read_bigvgan_json(folder / f"bigvgan_{size}.json"),
    )
    shapes = full_shapes(reference, "latent_projection", size)
    return complete_config(config, {key: torch.empty(shape, device="meta") for key, shape in shapes.items()})


def test_counters_and_computed_buffers_may_be_there_or_not() -> None:
    without = plan_keys(Toy(), toy_shapes(), "f")
    assert without.dropped == ()
    extra = {"norm.num_batches_tracked": (), "table": (7,), "old.weight": (9,), "old.0.weight_g": (1,)}
    plan = plan_keys(Toy(), {**toy_shapes(), **extra}, "f")
    assert set(plan.dropped) == {"table", "old.weight", "old.0.weight_g"}


def test_patterns_see_weight_norm_as_weight() -> None:
    assert plain_name("a.weight_g") == plain_name("a.weight_v") == plain_name("a.weight") == "a.weight"
    assert plain_name("a.parametrizations.weight.original1") == "a.weight"
    assert plain_name("weight_gain") == "weight_gain" and plain_name("a.bias") == "a.bias"


@pytest.mark.parametrize(
    "names",
    [("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1")],
)
def test_weight_norm_is_recognised_in_both_spellings(names: tuple[str, str]) -> None:
    shapes = toy_shapes()
    shapes[f"conv.{names[0]}"], shapes[f"conv.{names[1]}"] = (4, 1, 1), shapes.pop("conv.weight")
    assert plan_keys(Toy(), shapes, "f").sources["conv.weight"] == tuple(f"conv.{n}" for n in names)


def test_every_problem_is_named_at_once() -> None:
    shapes = toy_shapes()
    shapes["conv.weight"] = (4, 3, 6)
    del shapes["norm.bias"]
    shapes["conv.wieght"] = (4, 3, 5)
    with pytest.raises(CheckpointError) as caught:
        plan_keys(Toy(), shapes, "some.pth")
    message = str(caught.value)
    assert "some.pth" in message and "conv.weight has shape [4, 3, 6] instead of [4, 3, 5]" in message
    assert "1 unknown keys: conv.wieght [4, 3, 5]" in message and "1 missing keys: norm.bias [4]" in message


def test_wrong_magnitude_shape_and_double_weights_are_errors() -> None:
    shapes = toy_shapes() | {"conv.weight_g": (1, 3, 1), "conv.weight_v": (4, 3, 5)}
    with pytest.raises(CheckpointError, match=r"conv.weight is given twice"):
        plan_keys(Toy(), shapes, "f")
    del shapes["conv.weight"]
    with pytest.raises(CheckpointError, match=r"conv.weight_g has shape \[1, 3, 1\] instead of \[4, 1, 1\]"):
        plan_keys(Toy(), shapes, "f")


def test_half_of_a_weight_norm_is_a_missing_weight() -> None:
    shapes = toy_shapes() | {"conv.weight_v": (4, 3, 5)}
    del shapes["conv.weight"]
    with pytest.raises(CheckpointError, match=r"missing keys: conv\.weight") as caught:
        plan_keys(Toy(), shapes, "f")
    assert "conv.weight_v" in str(caught.value)


def test_patterns_match_whole_keys_only() -> None:
    with pytest.raises(CheckpointError, match=r"very\.old\.weight"):
        plan_keys(Toy(), toy_shapes() | {"very.old.weight": (1,)}, "f")


def test_integers_for_a_parameter_are_refused() -> None:
    tensors = {name: torch.zeros(shape) for name, shape in toy_shapes().items()}
    tensors["conv.weight"] = tensors["conv.weight"].long()
    with pytest.raises(CheckpointError, match=r"conv\.weight must be floating point"):
        fill(Toy(), Stored("f", tensors))


def test_a_parameter_left_on_meta_is_an_error() -> None:
    tensors = {name: torch.zeros(shape, device="meta") for name, shape in toy_shapes().items()}
    with pytest.raises(CheckpointError, match=r"gives no values for conv\.weight"):
        fill(Toy(), Stored("f", tensors))


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", ["full", "small"])
def test_every_key_of_the_published_files_is_consumed_or_dropped_by_name(reference: Path, name: str, size: str) -> None:
    module = build_empty(name, full_config(reference, size))
    assert all(p.is_meta for n, p in module.named_parameters() if p.numel() > 10_000)
    assert not any(buffer.is_meta for key, buffer in module.named_buffers() if key not in module.state_dict())
    shapes = full_shapes(reference, name, size)
    plan = plan_keys(module, shapes, name)
    used = [key for keys in plan.sources.values() for key in keys]
    assert len(used) == len(set(used)) and set(used) | set(plan.dropped) == set(shapes)
    assert set(plan.sources) >= {n for n, _ in module.named_parameters()}
    if size == "full" and name in FULL_PARAMETERS:
        assert sum(p.numel() for p in module.parameters()) == FULL_PARAMETERS[name]


@pytest.mark.parametrize("name", MODULES)
def test_one_missing_or_misshapen_key_of_a_published_file_is_named(reference: Path, name: str) -> None:
    module = build_empty(name, full_config(reference))
    shapes = full_shapes(reference, name)
    key = next(keys[0] for keys in plan_keys(module, shapes, name).sources.values())
    with pytest.raises(CheckpointError, match=r"missing keys"):
        plan_keys(module, {k: s for k, s in shapes.items() if k != key}, name)
    with pytest.raises(CheckpointError) as caught:
        plan_keys(module, {**shapes, key: (*shapes[key], 2)}, name)
    assert key in str(caught.value)
