import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from indextts2.checkpoints.config_files import dump_model_config, read_bigvgan_json, read_model_config
from indextts2.config import BigVGANConfig, MelConfig, ModelConfig, S2MelConfig, W2VBertConfig, parse_model_config
from indextts2.errors import ConfigError

COMPLETE = ModelConfig(w2v_bert=W2VBertConfig(), bigvgan=BigVGANConfig())


def write(folder: Path, config: ModelConfig) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(dump_model_config(config)))
    return path


@pytest.mark.parametrize(
    "config",
    [
        COMPLETE,
        ModelConfig(),
        dataclasses.replace(COMPLETE, s2mel=S2MelConfig(latent_projection=(256, 128), mel=MelConfig(fmax=8000.0))),
        dataclasses.replace(COMPLETE, tokenizer="phoneme", version=2.0, semantic_output_layer=3),
    ],
)
def test_dump_is_read_back_equal(config: ModelConfig) -> None:
    assert parse_model_config(yaml.safe_load(yaml.safe_dump(dump_model_config(config)))) == config


@pytest.mark.parametrize("size", ["full", "small"])
def test_official_configuration_is_merged(reference: Path, size: str) -> None:
    folder = reference / "checkpoint_files"
    names = (f"config_{size}.yaml", f"w2v_bert_{size}.json", f"bigvgan_{size}.json")
    if size == "small":  # its 4 layers end before the official output layer
        with pytest.raises(ConfigError, match="semantic_output_layer is 17 but w2v_bert has 4"):
            read_model_config(*(folder / name for name in names))
        return
    config = read_model_config(*(folder / name for name in names))
    assert config.w2v_bert == W2VBertConfig()
    assert config.bigvgan == BigVGANConfig(use_bias_at_final=False, use_tanh_at_final=False)
    assert config.version == 2.0


def test_sections_of_the_yaml_win(tmp_path: Path, reference: Path) -> None:
    config = dataclasses.replace(COMPLETE, w2v_bert=W2VBertConfig(num_hidden_layers=20))
    other = reference / "checkpoint_files" / "w2v_bert_full.json"
    assert read_model_config(write(tmp_path, config), other, None).w2v_bert == config.w2v_bert


def test_unknown_sizes_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sizes of w2v_bert are unknown"):
        read_model_config(write(tmp_path, ModelConfig()), None, None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bigvgan": BigVGANConfig(num_mels=100)}, "bigvgan.num_mels is 100"),
        ({"bigvgan": BigVGANConfig(sampling_rate=24000)}, "bigvgan.sampling_rate is 24000"),
        ({"w2v_bert": W2VBertConfig(hidden_size=512)}, "w2v_bert.hidden_size is 512"),
        ({"semantic_output_layer": 25}, "semantic_output_layer is 25"),
        ({"semantic_output_layer": 0}, "semantic_output_layer is 0"),
    ],
)
def test_contradictions_are_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    config = dataclasses.replace(COMPLETE, **changes)
    with pytest.raises(ConfigError, match=message):
        read_model_config(write(tmp_path, config), None, None)


@pytest.mark.parametrize("values", [{"activation": "snake"}, {"resblock": "2"}, [], {"num_mels": "80"}])
def test_other_vocoders_are_refused(tmp_path: Path, values: object) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ConfigError):
        read_bigvgan_json(path)
