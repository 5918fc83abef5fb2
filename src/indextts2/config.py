"""Configuration: the sizes of every network, read strictly, and the options of one inference.

`ModelConfig` mirrors the official ``config.yaml`` section by section. Keys that the official file carries
but inference never reads are listed by name (``UNUSED_KEYS``); any other unknown key is an error.
Three networks keep their sizes outside of ``config.yaml`` in the official layout (w2v-BERT and BigVGAN in JSON
files of their own, CAMPPlus in code). A configuration may carry them as the sections ``w2v_bert``,
``bigvgan`` and ``campplus``; a converted or embedded model does.
"""

from __future__ import annotations

import dataclasses
import json
import math
import secrets
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from indextts2.errors import ConfigError
from indextts2.presets import FLOW_DTYPES, GPT_WEIGHTS, PRESETS, SOLVERS

EMOTIONS = ("happy", "angry", "sad", "afraid", "disgusted", "melancholic", "surprised", "calm")

T = TypeVar("T")


@dataclass(frozen=True)
class ConformerConfig:
    """One conditioning encoder of the GPT with its perceiver (spec: `condition_module`)."""

    output_size: int = 512
    linear_units: int = 2048
    attention_heads: int = 8
    num_blocks: int = 6
    input_layer: str = "conv2d2"
    perceiver_mult: int = 2
    perceiver_depth: int = 2
    perceiver_head_dim: int = 64
    kernel_size: int = 15


@dataclass(frozen=True)
class GPTConfig:
    """UnifiedVoice: conditioners, embeddings and the GPT-2 stack."""

    model_dim: int = 1280
    layers: int = 24
    heads: int = 20
    max_mel_tokens: int = 1815
    max_text_tokens: int = 600
    number_text_tokens: int = 12000
    number_mel_codes: int = 8194
    start_mel_token: int = 8192
    stop_mel_token: int = 8193
    start_text_token: int = 0
    stop_text_token: int = 1
    condition_module: ConformerConfig = ConformerConfig()
    emo_condition_module: ConformerConfig = ConformerConfig(linear_units=1024, attention_heads=4, num_blocks=4)
    # Not in the official file, constant there:
    condition_input_dim: int = 1024
    condition_latents: int = 32
    emotion_latent_dim: int = 1024
    # The official decoder never uses mel position 1 (03 section 7). A model trained without that quirk says False;
    # its decode states then are the latents and no second pass is needed.
    skips_first_mel_position: bool = True

    @property
    def text_positions(self) -> int:
        """Rows of the text position table: the longest text with its start and stop token."""
        return self.max_text_tokens + 2

    @property
    def mel_positions(self) -> int:
        """Rows of the mel position table."""
        return self.max_mel_tokens + 3


@dataclass(frozen=True)
class SemanticCodecConfig:
    """RepCodec: ConvNeXt encoder and one factorised vector quantiser."""

    codebook_size: int = 8192
    hidden_size: int = 1024
    codebook_dim: int = 8
    vocos_dim: int = 384
    vocos_intermediate_dim: int = 2048
    vocos_num_layers: int = 12


@dataclass(frozen=True)
class W2VBertConfig:
    """Encoder of semantic features (transformers' Wav2Vec2BertModel without adapter)."""

    hidden_size: int = 1024
    num_hidden_layers: int = 24
    num_attention_heads: int = 16
    intermediate_size: int = 4096
    feature_projection_input_dim: int = 160
    conv_depthwise_kernel_size: int = 31
    left_max_position_embeddings: int = 64
    right_max_position_embeddings: int = 8
    layer_norm_eps: float = 1e-5


@dataclass(frozen=True)
class CampPlusConfig:
    """CAMPPlus speaker encoder; the defaults are campplus_cn_common."""

    feat_dim: int = 80
    embedding_size: int = 192
    head_channels: int = 32
    initial_channels: int = 128
    growth_rate: int = 32
    bottleneck_channels: int = 128
    block_layers: tuple[int, ...] = (12, 24, 16)
    block_dilations: tuple[int, ...] = (1, 2, 2)
    segment_frames: int = 100


@dataclass(frozen=True)
class MelConfig:
    """Log-mel spectrogram of the prompt; `fmax` None means half the sample rate."""

    sample_rate: int = 22050
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 256
    n_mels: int = 80
    fmin: float = 0.0
    fmax: float | None = None


@dataclass(frozen=True)
class LengthRegulatorConfig:
    channels: int = 512
    in_channels: int = 1024
    sampling_ratios: tuple[int, ...] = (1, 1, 1, 1)


@dataclass(frozen=True)
class DiTConfig:
    hidden_dim: int = 512
    num_heads: int = 8
    depth: int = 13
    in_channels: int = 80
    content_dim: int = 512
    block_size: int = 8192


@dataclass(frozen=True)
class WaveNetConfig:
    hidden_dim: int = 512
    num_layers: int = 8
    kernel_size: int = 5
    dilation_rate: int = 1


@dataclass(frozen=True)
class S2MelConfig:
    """Length regulator, DiT with WaveNet head, and the projection of GPT latents."""

    mel: MelConfig = MelConfig()
    style_dim: int = 192
    length_regulator: LengthRegulatorConfig = LengthRegulatorConfig()
    dit: DiTConfig = DiTConfig()
    wavenet: WaveNetConfig = WaveNetConfig()
    # Inner widths of `gpt_layer`. None: whatever the checkpoint holds (the official file does not name them).
    latent_projection: tuple[int, ...] | None = None
    # Mel frames per semantic code: 1.72 in the official code (not 22050 / 256 / 50).
    frames_per_code: float = 1.72
    # Defaults of the sampler: 25 even Euler steps with guidance 0.7 from noise of standard deviation 1.
    steps: int = 25
    sway: float = 0.0
    cfg_rate: float = 0.7
    flow_temperature: float = 1.0
    # So much of the end of the reference is shown to the flow, in seconds; 0 is all of it.
    prompt_seconds: float = 0.0


@dataclass(frozen=True)
class BigVGANConfig:
    """Vocoder; the two `_at_final` switches default to true as in BigVGAN v1 files."""

    num_mels: int = 80
    sampling_rate: int = 22050
    hop_size: int = 256
    upsample_rates: tuple[int, ...] = (4, 4, 2, 2, 2, 2)
    upsample_kernel_sizes: tuple[int, ...] = (8, 8, 4, 4, 4, 4)
    upsample_initial_channel: int = 1536
    resblock_kernel_sizes: tuple[int, ...] = (3, 7, 11)
    resblock_dilation_sizes: tuple[tuple[int, ...], ...] = ((1, 3, 5), (1, 3, 5), (1, 3, 5))
    snake_logscale: bool = True
    use_bias_at_final: bool = True
    use_tanh_at_final: bool = True
    # Width of the pitch estimator of the harmonic source; 0: there is no source, as in the official vocoder.
    pitch_channels: int = 0

    def __post_init__(self) -> None:
        if math.prod(self.upsample_rates) != self.hop_size:
            raise ConfigError(f"upsample_rates {self.upsample_rates} do not multiply to hop_size {self.hop_size}")


@dataclass(frozen=True)
class FilesConfig:
    """Names of files relative to the model directory."""

    bpe_model: str = "bpe.model"
    gpt_checkpoint: str = "gpt.pth"
    s2mel_checkpoint: str = "s2mel.pth"
    w2v_stat: str = "wav2vec2bert_stats.pt"
    emo_matrix: str = "feat2.pt"
    spk_matrix: str = "feat1.pt"
    qwen_emo_path: str = "qwen0.6bemo4-merge/"


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is known about a model before its weights are read."""

    gpt: GPTConfig = GPTConfig()
    semantic_codec: SemanticCodecConfig = SemanticCodecConfig()
    s2mel: S2MelConfig = S2MelConfig()
    w2v_bert: W2VBertConfig | None = None
    campplus: CampPlusConfig = CampPlusConfig()
    bigvgan: BigVGANConfig | None = None
    files: FilesConfig = FilesConfig()
    emo_num: tuple[int, ...] = (3, 17, 2, 8, 4, 5, 10, 24)
    # Index into the tuple of hidden states: the output of this many encoder layers.
    semantic_output_layer: int = 17
    # "sentencepiece" (official) or "phoneme" (the embedded voice).
    tokenizer: str = "sentencepiece"
    # Decoding options that this model wants by default; None: those of GenerationConfig, as the official one has them.
    generation: GenerationConfig | None = None
    version: float | None = None


# Official keys without effect on inference, by section; accepted and dropped on purpose.
UNUSED_KEYS: dict[str, frozenset[str]] = {
    "dataset": frozenset({"sample_rate", "squeeze", "mel"}),
    "gpt": frozenset({"use_mel_codes_as_input", "mel_length_compression", "train_solo_embeddings", "condition_type"}),
    "s2mel": frozenset({"dit_type", "reg_loss_type"}),
    "length_regulator": frozenset(
        {"is_discrete", "content_codebook_size", "vector_quantize", "n_codebooks", "quantizer_dropout",
         "f0_condition", "n_f0_bins"}
    ),
    "DiT": frozenset(
        {"class_dropout_prob", "style_condition", "final_layer_type", "target", "content_codebook_size",
         "content_type", "f0_condition", "n_f0_bins", "content_codebooks", "is_causal", "long_skip_connection",
         "zero_prompt_speech_token", "time_as_token", "style_as_token", "uvit_skip_connection",
         "add_resblock_in_transformer"}
    ),
    "wavenet": frozenset({"p_dropout", "style_condition"}),
    "top": frozenset({"vocoder"}),
}  # fmt: skip

# Switches of the official DiT that change the network. Only the published setting is implemented.
REQUIRED_DIT = {
    "style_condition": True, "final_layer_type": "wavenet", "f0_condition": False, "is_causal": False,
    "long_skip_connection": True, "time_as_token": False, "style_as_token": False, "uvit_skip_connection": True,
    "add_resblock_in_transformer": False, "zero_prompt_speech_token": False,
}  # fmt: skip


def _check_type(value: Any, hint: Any, where: str) -> Any:
    """Return `value` as `hint` (int, float, str, bool, tuples, optionals, dataclasses) or raise ConfigError."""
    origin = typing.get_origin(hint)
    if origin in (types.UnionType, typing.Union):
        options = typing.get_args(hint)
        if value is None and type(None) in options:
            return None
        return _check_type(value, next(o for o in options if o is not type(None)), where)
    if dataclasses.is_dataclass(hint):
        return build(typing.cast(type, hint), value, where)
    if origin is tuple:
        item = typing.get_args(hint)[0]
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, not {value!r}")
        return tuple(_check_type(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if not math.isfinite(value):
            raise ConfigError(f"{where} must be a finite number, not {value!r}")
        return float(value)
    if type(value) is not hint:
        raise ConfigError(f"{where} must be of type {hint.__name__}, not {value!r}")
    return value


def build(cls: type[T], values: Any, where: str, unused: frozenset[str] = frozenset()) -> T:
    """Make the frozen dataclass `cls` from a mapping; unknown keys and wrong types raise ConfigError."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"section {where} must be a mapping, not {values!r}")
    hints = typing.get_type_hints(cls)
    known = {}
    for key, value in values.items():
        if key in hints:
            known[key] = _check_type(value, hints[key], f"{where}.{key}")
        elif key not in unused:
            raise ConfigError(f"unknown key {where}.{key}; known keys: {', '.join(sorted(hints))}")
    return cls(**known)


def _parse_mel(values: Any) -> MelConfig:
    where = "s2mel.preprocess_params"
    if not isinstance(values, Mapping):
        raise ConfigError(f"section {where} must be a mapping, not {values!r}")
    spect = dict(values.get("spect_params", {}))
    # The official code compares with the string "None": that one means half the sample rate, anything else 8000 Hz.
    fmax = spect.pop("fmax", "None")
    fmax_hz = None if fmax in ("None", None) else 8000.0
    return build(MelConfig, {"sample_rate": values.get("sr", 22050), "fmax": fmax_hz, **spect}, where)


def _parse_s2mel(values: Any) -> S2MelConfig:
    if not isinstance(values, Mapping):
        raise ConfigError(f"section s2mel must be a mapping, not {values!r}")
    rest = dict(values)
    dit = rest.pop("DiT", {})
    for key, wanted in REQUIRED_DIT.items():
        if dit.get(key, wanted) != wanted:
            raise ConfigError(f"s2mel.DiT.{key} = {dit[key]!r} is not supported; only {wanted!r} is")
    parts: dict[str, Any] = {
        "mel": _parse_mel(rest.pop("preprocess_params", {})),
        "style_dim": rest.pop("style_encoder", {}).get("dim", 192),
        "length_regulator": build(LengthRegulatorConfig, rest.pop("length_regulator", {}), "s2mel.length_regulator",
                                  UNUSED_KEYS["length_regulator"]),
        "dit": build(DiTConfig, dit, "s2mel.DiT", UNUSED_KEYS["DiT"]),
        "wavenet": build(WaveNetConfig, rest.pop("wavenet", {}), "s2mel.wavenet", UNUSED_KEYS["wavenet"]),
    }  # fmt: skip
    plain = build(S2MelConfig, rest, "s2mel", UNUSED_KEYS["s2mel"])
    return dataclasses.replace(plain, **parts)


def parse_model_config(values: Any) -> ModelConfig:
    """Turn the mapping of a ``config.yaml`` into a ModelConfig.

    Raises:
        ConfigError: a key is unknown, has the wrong type, or asks for a variant that is not implemented.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"a configuration must be a mapping of sections, not {type(values).__name__}")
    rest = dict(values)
    dataset = build(FilesConfig, rest.pop("dataset", {}), "dataset", UNUSED_KEYS["dataset"])
    names = [f.name for f in dataclasses.fields(FilesConfig) if f.name != "bpe_model"]
    files = {name: rest.pop(name) for name in names if name in rest}
    parts: dict[str, Any] = {
        "files": dataclasses.replace(build(FilesConfig, files, "files"), bpe_model=dataset.bpe_model),
        "gpt": build(GPTConfig, rest.pop("gpt", {}), "gpt", UNUSED_KEYS["gpt"]),
        "s2mel": _parse_s2mel(rest.pop("s2mel", {})),
    }
    plain = build(ModelConfig, rest, "config", UNUSED_KEYS["top"])
    return check_consistency(dataclasses.replace(plain, **parts))


def check_consistency(config: ModelConfig) -> ModelConfig:
    """Raise ConfigError where two sections contradict each other; return the configuration."""
    gpt, s2mel, codec = config.gpt, config.s2mel, config.semantic_codec
    equal = [
        ("gpt.condition_input_dim", gpt.condition_input_dim, "semantic_codec.hidden_size", codec.hidden_size),
        ("s2mel.length_regulator.in_channels", s2mel.length_regulator.in_channels, "semantic_codec.hidden_size",
         codec.hidden_size),
        ("s2mel.style_encoder.dim", s2mel.style_dim, "campplus.embedding_size", config.campplus.embedding_size),
        ("s2mel.DiT.in_channels", s2mel.dit.in_channels, "n_mels", s2mel.mel.n_mels),
        ("gpt.stop_mel_token", gpt.stop_mel_token, "gpt.number_mel_codes - 1", gpt.number_mel_codes - 1),
        ("gpt.start_mel_token", gpt.start_mel_token, "semantic_codec.codebook_size", codec.codebook_size),
        ("len(emo_num)", len(config.emo_num), "number of emotions", len(EMOTIONS)),
    ]  # fmt: skip
    for name, value, other, expected in equal:
        if value != expected:
            raise ConfigError(f"{name} is {value} but {other} is {expected}; they must be equal")
    return config


def load_yaml(path: Path) -> Any:
    """Read YAML safely (no tags, no aliases bomb: files over 1 MiB and aliases are refused)."""
    import yaml

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > 1 << 20:
        raise ConfigError(f"{path} has {len(data)} bytes; a configuration may have at most {1 << 20}")
    try:
        text = data.decode("utf-8")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=yaml.SafeLoader)):
            raise ConfigError(f"{path} uses a YAML alias, which configurations may not")
        return yaml.safe_load(text)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error


def load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid JSON: {error}") from error


def subset(cls: type[T], values: Mapping[str, Any], where: str) -> T:
    """Like `build`, for foreign files (w2v-BERT, BigVGAN) whose other keys are training matters."""
    hints = typing.get_type_hints(cls)
    return build(cls, {k: v for k, v in values.items() if k in hints}, where)


@dataclass(frozen=True)
class GenerationConfig:
    """Options of the autoregressive decoder (03 section 7)."""

    do_sample: bool = True
    temperature: float = 0.8
    top_k: int = 50
    top_p: float = 0.95
    min_p: float = 0.0
    typical_sampling: bool = False
    typical_mass: float = 0.9
    repetition_penalty: float = 10.0
    num_beams: int = 3
    length_penalty: float = 0.0
    max_mel_tokens: int = 1500
    min_new_tokens: int = 0

    def __post_init__(self) -> None:
        positive = ("temperature", "repetition_penalty")
        for name in positive:
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ConfigError(f"{name} must be a number above 0, not {value!r}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must lie in (0, 1], not {self.top_p!r}")
        if not 0.0 <= self.min_p < 1.0:
            raise ConfigError(f"min_p must lie in [0, 1), not {self.min_p!r}")
        if not 0.0 < self.typical_mass < 1.0:
            raise ConfigError(f"typical_mass must lie in (0, 1), not {self.typical_mass!r}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (off) or more, not {self.top_k}")
        if not 1 <= self.num_beams <= 16:
            raise ConfigError(f"num_beams must lie in 1..16, not {self.num_beams}")
        if self.max_mel_tokens < 1:
            raise ConfigError(f"max_mel_tokens must be at least 1, not {self.max_mel_tokens}")
        if not 0 <= self.min_new_tokens <= self.max_mel_tokens:
            raise ConfigError(f"min_new_tokens must lie in 0..max_mel_tokens, not {self.min_new_tokens}")


@dataclass(frozen=True)
class InferenceConfig:
    """Every option of one call (01 section 5). None: as preset and model want it; `seed` None draws one.

    Args:
        preset: "exact" computes what the official implementation does; "balanced" and "fast" choose cheaper values of
            the options below that are not given (`indextts2.presets`).
        solver, sway: of the flow, see `models.s2mel.solvers`. `sway` below 0 puts the steps closer to its start.
        guidance_until: from this time of the flow on, 0 to 1, it is not guided, which halves the work.
        prompt_seconds: the flow sees so much of the end of the reference; 0 is all of it.
        flow_dtype: of the flow's matrix products; "auto" is bfloat16 where the device has instructions for it.
        gpt_weights: of decoding; "int8" and "int4" are rounded copies for CPUs, "auto" is int8 on a CPU.
    """

    generation: GenerationConfig | None = None
    max_text_tokens_per_segment: int = 120
    quick_streaming_tokens: int = 0
    interval_silence_ms: int = 200
    steps: int | None = None
    cfg_rate: float | None = None
    flow_temperature: float | None = None
    duration_factor: float = 1.0
    target_seconds: float | None = None
    seed: int | None = None
    preset: str = "exact"
    solver: str | None = None
    sway: float | None = None
    guidance_until: float | None = None
    prompt_seconds: float | None = None
    flow_dtype: str | None = None
    gpt_weights: str | None = None

    def __post_init__(self) -> None:
        if self.max_text_tokens_per_segment < 2:
            raise ConfigError(f"max_text_tokens_per_segment must be at least 2, not {self.max_text_tokens_per_segment}")
        if self.quick_streaming_tokens < 0:
            raise ConfigError(f"quick_streaming_tokens must be 0 or more, not {self.quick_streaming_tokens}")
        if not 0 <= self.interval_silence_ms <= 60_000:
            raise ConfigError(f"interval_silence_ms must lie in 0..60000, not {self.interval_silence_ms}")
        if self.steps is not None and not 1 <= self.steps <= 1000:
            raise ConfigError(f"steps must lie in 1..1000, not {self.steps}")
        if self.cfg_rate is not None and not 0.0 <= self.cfg_rate <= 10.0:
            raise ConfigError(f"cfg_rate must lie in [0, 10], not {self.cfg_rate!r}")
        if self.flow_temperature is not None and not 0.0 <= self.flow_temperature <= 2.0:
            raise ConfigError(f"flow_temperature must lie in [0, 2], not {self.flow_temperature!r}")
        if not 0.5 <= self.duration_factor <= 2.0:
            raise ConfigError(f"duration_factor must lie in [0.5, 2], not {self.duration_factor!r}")
        if self.target_seconds is not None and not 0.1 <= self.target_seconds <= 3600:
            raise ConfigError(f"target_seconds must lie in [0.1, 3600], not {self.target_seconds!r}")
        if self.seed is not None and not 0 <= self.seed < 1 << 63:
            raise ConfigError(f"seed must lie in 0..2**63-1, not {self.seed}")
        self._check_shortcuts()

    def _check_shortcuts(self) -> None:
        """The options that trade exactness for speed."""
        named = {"preset": PRESETS, "solver": SOLVERS, "flow_dtype": FLOW_DTYPES, "gpt_weights": GPT_WEIGHTS}
        for name, known in named.items():
            value = getattr(self, name)
            if value is not None and value not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {value!r}")
        if self.sway is not None and not -1.0 <= self.sway <= 1.0:
            raise ConfigError(f"sway must lie in [-1, 1], not {self.sway!r}")
        if self.guidance_until is not None and not 0.0 <= self.guidance_until <= 1.0:
            raise ConfigError(f"guidance_until must lie in [0, 1], not {self.guidance_until!r}")
        seconds = self.prompt_seconds
        if seconds is not None and seconds != 0 and not 0.5 <= seconds <= 60:
            raise ConfigError(f"prompt_seconds must be 0 (all of the reference) or lie in [0.5, 60], not {seconds!r}")

    def resolved(self, model: ModelConfig) -> ResolvedConfig:
        """The same options with nothing left open: what preset and model want by default, and a seed."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(InferenceConfig)}
        preset = PRESETS[self.preset]
        defaults: dict[str, Any] = {
            **dataclasses.asdict(preset),
            "generation": model.generation or GenerationConfig(),
            "steps": preset.steps(model.s2mel.steps),
            "sway": min(preset.sway, model.s2mel.sway),
            "cfg_rate": model.s2mel.cfg_rate,
            "flow_temperature": model.s2mel.flow_temperature,
            "prompt_seconds": min(filter(None, (preset.prompt_seconds, model.s2mel.prompt_seconds)), default=0.0),
            "seed": secrets.randbits(32),
        }
        values = {name: defaults.get(name) if value is None else value for name, value in given.items()}
        return ResolvedConfig(**typing.cast("dict[str, Any]", values))


@dataclass(frozen=True, kw_only=True)
class ResolvedConfig(InferenceConfig):
    """Options with nothing left open, see `InferenceConfig.resolved`."""

    generation: GenerationConfig
    steps: int
    cfg_rate: float
    flow_temperature: float
    seed: int
    # With defaults, for sets of options that were written before there were any others.
    solver: str = "euler"
    sway: float = 0.0
    guidance_until: float = 1.0
    prompt_seconds: float = 0.0
    flow_dtype: str = "float32"
    gpt_weights: str = "full"
