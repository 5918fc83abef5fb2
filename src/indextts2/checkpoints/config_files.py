"""From the configuration files of a model directory to one ModelConfig, and back to one complete mapping.

The official layout keeps the sizes of w2v-BERT and BigVGAN in JSON files of their own repositories (spec 01 section 2);
sections of the same name in ``config.yaml`` win. `dump_model_config` writes every section, so that a converted
directory needs no other file.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from indextts2.config import (
    BigVGANConfig,
    ModelConfig,
    W2VBertConfig,
    check_consistency,
    load_json,
    load_yaml,
    parse_model_config,
    subset,
)
from indextts2.errors import ConfigError

# Settings that select another network; only the published value is implemented. Absent keys take the published value.
REQUIRED_W2V_BERT: dict[str, Any] = {"hidden_act": "swish", "position_embeddings_type": "relative_key"}
REQUIRED_BIGVGAN: dict[str, Any] = {"resblock": "1", "activation": "snakebeta"}


def read_w2v_bert_json(path: Path) -> W2VBertConfig:
    """Sizes of w2v-BERT from the `config.json` of its repository.

    Raises:
        ConfigError: the file is missing, malformed, or describes another network.
    """
    return subset(W2VBertConfig, _supported(path, REQUIRED_W2V_BERT), str(path))


def read_bigvgan_json(path: Path) -> BigVGANConfig:
    """Sizes of BigVGAN from the `config.json` of its repository.

    Raises:
        ConfigError: the file is missing, malformed, or describes another network.
    """
    return subset(BigVGANConfig, _supported(path, REQUIRED_BIGVGAN), str(path))


def _supported(path: Path, required: Mapping[str, Any]) -> Mapping[str, Any]:
    values = load_json(path)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path} must hold a JSON object, not {type(values).__name__}")
    for key, wanted in required.items():
        if values.get(key, wanted) != wanted:
            raise ConfigError(f"{path}: {key} = {values[key]!r} is not supported; only {wanted!r} is")
    return values


def read_model_config(config_yaml: Path, w2v_bert_json: Path | None, bigvgan_json: Path | None) -> ModelConfig:
    """Merge ``config.yaml`` with the two JSON files; a section of the yaml wins over its JSON file.

    Raises:
        ConfigError: a file is malformed, a size is given nowhere, or two sections contradict each other.
    """
    config = parse_model_config(load_yaml(config_yaml))
    if config.w2v_bert is None and w2v_bert_json is not None:
        config = dataclasses.replace(config, w2v_bert=read_w2v_bert_json(w2v_bert_json))
    if config.bigvgan is None and bigvgan_json is not None:
        config = dataclasses.replace(config, bigvgan=read_bigvgan_json(bigvgan_json))
    return _check_merged(config, config_yaml)


def _check_merged(config: ModelConfig, config_yaml: Path) -> ModelConfig:
    for name in ("w2v_bert", "bigvgan"):
        if getattr(config, name) is None:
            raise ConfigError(
                f"the sizes of {name} are unknown: {config_yaml} has no section {name} and the model directory "
                f"has no configuration file of it; download the model again or add the section"
            )
    check_consistency(config)
    w2v_bert, bigvgan, mel = config.w2v_bert, config.bigvgan, config.s2mel.mel
    assert w2v_bert is not None and bigvgan is not None
    if not 1 <= config.semantic_output_layer <= w2v_bert.num_hidden_layers:
        raise ConfigError(
            f"semantic_output_layer is {config.semantic_output_layer} but w2v_bert has "
            f"{w2v_bert.num_hidden_layers} layers; it must lie in 1..{w2v_bert.num_hidden_layers}"
        )
    equal = [
        ("w2v_bert.hidden_size", w2v_bert.hidden_size, "semantic_codec.hidden_size", config.semantic_codec.hidden_size),
        ("bigvgan.num_mels", bigvgan.num_mels, "s2mel n_mels", mel.n_mels),
        ("bigvgan.sampling_rate", bigvgan.sampling_rate, "s2mel sample rate", mel.sample_rate),
        ("bigvgan.hop_size", bigvgan.hop_size, "s2mel hop_length", mel.hop_length),
    ]
    for name, value, other, expected in equal:
        if value != expected:
            raise ConfigError(f"{name} is {value} but {other} is {expected}; they must be equal")
    return config


def dump_model_config(config: ModelConfig) -> dict[str, Any]:
    """The mapping from which `parse_model_config` makes an equal configuration, with all sections."""
    top = _plain(config)
    files, s2mel = top.pop("files"), top.pop("s2mel")
    mel = s2mel.pop("mel")
    fmax = mel.pop("fmax")
    s2mel["preprocess_params"] = {
        "sr": mel.pop("sample_rate"),
        # The official reader takes the string "None" for half the sample rate.
        "spect_params": {**mel, "fmax": "None" if fmax is None else fmax},
    }
    s2mel["style_encoder"] = {"dim": s2mel.pop("style_dim")}
    s2mel["DiT"] = s2mel.pop("dit")
    top["dataset"] = {"bpe_model": files.pop("bpe_model")}
    return {**{k: v for k, v in top.items() if v is not None}, "s2mel": s2mel, **files}


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries and tuples as lists, which YAML can hold."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value
