"""What every stage has to compute and to read at least: closed forms of its configuration.

T frames, P prompt frames, L rows, W width. One multiply-add counts as 2 FLOP. Every weight is read once per call, in
float32, and a decoding step reads the keys and values that it attends to; activations count as free, as if the cache
held them. What can be removed without changing results is removed: see docs/performance.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from indextts2.config import (
    BigVGANConfig,
    CampPlusConfig,
    ConformerConfig,
    GPTConfig,
    LengthRegulatorConfig,
    S2MelConfig,
    SemanticCodecConfig,
    W2VBertConfig,
)
from indextts2.models.vocoder.bigvgan import OUTER_KERNEL
from indextts2.models.vocoder.source import EXCITATION_CHANNELS, KERNEL, LAYERS, PITCH_CLASSES

BYTES_PER_NUMBER = 4
FILTER_TAPS = 12 + 12  # of the up- and the down-sampler around an activation, per sample at the base rate


@dataclass(frozen=True)
class Cost:
    """Arithmetic and traffic of one call."""

    flop: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flop + other.flop, self.bytes + other.bytes)

    def __mul__(self, times: float) -> Cost:
        return Cost(self.flop * times, self.bytes * times)

    __rmul__ = __mul__

    def floor_seconds(self, flop_per_second: float, bytes_per_second: float) -> float:
        """The least time on a machine of these sustained rates."""
        return max(self.flop / flop_per_second, self.bytes / bytes_per_second)


def linear(rows: float, inputs: int, outputs: int) -> Cost:
    """A matrix applied to `rows` rows; a convolution has kernel times channels as its inputs."""
    return Cost(2 * rows * inputs * outputs, BYTES_PER_NUMBER * inputs * outputs)


def depthwise(frames: int, channels: int, kernel: int) -> Cost:
    return linear(frames, kernel, channels)


def attention(pairs: float, width: int) -> Cost:
    """Scores and weighted sums of `pairs` of a query and a key, all heads together `width` wide."""
    return Cost(4 * pairs * width)


def total(*costs: Cost) -> Cost:
    return sum(costs, Cost())


# --- reference audio --------------------------------------------------------------------------------------------------


def w2v_bert(config: W2VBertConfig, layers: int, frames: int) -> Cost:
    """`layers` layers over `frames` at 50 Hz."""
    width, kernel = config.hidden_size, config.conv_depthwise_kernel_size
    distances = config.left_max_position_embeddings + 1 + config.right_max_position_embeddings
    head_width = width // config.num_attention_heads
    layer = total(
        2 * linear(frames, width, config.intermediate_size),
        2 * linear(frames, config.intermediate_size, width),
        4 * linear(frames, width, width),
        linear(frames * config.num_attention_heads, head_width, distances),
        attention(frames**2, width),
        linear(frames, width, 2 * width),
        depthwise(frames, width, kernel),
        linear(frames, width, width),
    )
    return linear(frames, config.feature_projection_input_dim, width) + layers * layer


def semantic_codec(config: SemanticCodecConfig, frames: int) -> Cost:
    """Encoder and lookup over `frames` at 50 Hz."""
    kernel, width, inner = 7, config.vocos_dim, config.vocos_intermediate_dim
    block = depthwise(frames, width, kernel) + linear(frames, width, inner) + linear(frames, inner, width)
    return total(
        linear(frames, kernel * config.hidden_size, width),
        config.vocos_num_layers * block,
        linear(frames, width, config.hidden_size),
        linear(frames, config.hidden_size, config.codebook_dim),
        linear(frames, config.codebook_dim, config.codebook_size),
        linear(frames, config.codebook_dim, config.hidden_size),
    )


def campplus(config: CampPlusConfig, frames: int) -> Cost:
    """The speaker encoder over `frames` at 100 Hz."""
    channels, rows = config.head_channels, [config.feat_dim]
    for _ in range(3):
        rows.append((rows[-1] + 1) // 2)

    def image(height: int, inputs: int = channels) -> Cost:
        return linear(frames * height, 9 * inputs, channels)

    head = image(rows[0], 1) + image(rows[3])
    for height in rows[1:3]:
        head += 4 * image(height) + linear(frames * height, channels, channels)
    frames = (frames + 1) // 2
    segments = math.ceil(frames / config.segment_frames)
    width, growth = config.bottleneck_channels, config.growth_rate
    added = linear(frames, 3 * width, growth) + linear(segments, width, width // 2)
    added += linear(segments, width // 2, growth)
    cost = head + linear(frames, 5 * channels * rows[3], config.initial_channels)
    filled = config.initial_channels
    for layers in config.block_layers:
        for _ in range(layers):
            cost += linear(frames, filled, width) + added
            filled += growth
        cost += linear(frames, filled, filled // 2)
        filled //= 2
    return cost + linear(1, 2 * filled, config.embedding_size)


def _conformer(config: ConformerConfig, input_dim: int, frames: int) -> Cost:
    width, inner = config.output_size, config.linear_units
    short, narrow = (frames - 1) // 2, (input_dim - 1) // 2
    block = total(
        5 * linear(short, width, width),
        2 * Cost(2 * short * width),  # the two biases of the scores
        attention(short**2, width),
        linear(short, width, 2 * width),
        depthwise(short, width, config.kernel_size),
        linear(short, width, width),
        linear(short, width, inner),
        linear(short, inner, width),
    )
    return linear(short * narrow, 9, width) + linear(short, width * narrow, width) + config.num_blocks * block


def _perceiver(config: ConformerConfig, width: int, latents: int, frames: int) -> Cost:
    heads_width = config.attention_heads * config.perceiver_head_dim
    inner, keys = int(width * config.perceiver_mult * 2 / 3), latents + frames
    layer = total(
        linear(latents, width, heads_width),
        linear(keys, width, 2 * heads_width),
        attention(latents * keys, heads_width),
        linear(latents, heads_width, width),
        linear(latents, width, 2 * inner),
        linear(latents, inner, width),
    )
    return linear(frames, config.output_size, width) + config.perceiver_depth * layer


def speaker_conditioner(config: GPTConfig, frames: int) -> Cost:
    """Speaker latents from `frames` of semantic features."""
    part = config.condition_module
    encoder = _conformer(part, config.condition_input_dim, frames)
    return encoder + _perceiver(part, config.model_dim, config.condition_latents, (frames - 1) // 2)


def emotion_conditioner(config: GPTConfig, frames: int) -> Cost:
    """The emotion vector from `frames` of semantic features."""
    part, width = config.emo_condition_module, config.emotion_latent_dim
    return total(
        _conformer(part, config.condition_input_dim, frames),
        _perceiver(part, width, 1, (frames - 1) // 2),
        linear(1, width, config.model_dim),
        linear(1, config.model_dim, config.model_dim),
    )


# --- text to codes ----------------------------------------------------------------------------------------------------


def gpt_rows(config: GPTConfig, rows: int, pairs: float) -> Cost:
    """`rows` rows through all blocks, which attend to `pairs` rows in all, their own included."""
    width = config.model_dim
    dense = linear(rows, width, 3 * width) + linear(rows, width, width) + 2 * linear(rows, width, 4 * width)
    return config.layers * (dense + attention(pairs, width))


def gpt_prefill(config: GPTConfig, rows: int) -> Cost:
    """A prefix with its start token, and the logits of the last row."""
    head = linear(1, config.model_dim, config.number_mel_codes)
    return gpt_rows(config, rows, rows * (rows + 1) / 2) + head


def decode_step(config: GPTConfig, beams: int, prefix_rows: int, codes: float) -> Cost:
    """One step of `beams` beams that hold `codes` codes each behind a prefix which they share."""
    pairs = beams * (prefix_rows + codes + 1)
    kept = Cost(0, 2 * BYTES_PER_NUMBER * config.layers * config.model_dim * (prefix_rows + beams * codes))
    return gpt_rows(config, beams, pairs) + linear(beams, config.model_dim, config.number_mel_codes) + kept


def latents(config: GPTConfig, prefix_rows: int, codes: int) -> Cost:
    """The second pass, on the keys and values of the prefix; the last code is not fed."""
    rows = codes - 1
    return gpt_rows(config, rows, rows * prefix_rows + rows * (rows + 1) / 2)


# --- codes to sound ---------------------------------------------------------------------------------------------------


def length_regulator(config: LengthRegulatorConfig, codes: int, frames: int) -> Cost:
    """`codes` content frames to `frames` mel frames."""
    width = config.channels
    convolutions = len(config.sampling_ratios) * linear(frames, 3 * width, width)
    return linear(codes, config.in_channels, width) + convolutions + linear(frames, width, width)


def flow_step(config: S2MelConfig, prompt: int, frames: int, branches: int = 2) -> Cost:
    """One evaluation over `prompt` and `frames` further frames, for so many branches of the guidance.

    The last layer, from its queries on, and the head are needed only for frames which the output depends on.
    """
    dit, wave = config.dit, config.wavenet
    width, bands, depth = dit.hidden_dim, dit.in_channels, dit.depth
    reach = wave.kernel_size // 2 * sum(wave.dilation_rate**i for i in range(wave.num_layers))
    every = branches * (prompt + frames)
    wanted = branches * (min(prompt, reach) + frames)
    inner = 2 * 4 * width // 3
    inner += -inner % 256
    cost = linear(every, bands, width) + (depth - 1 - depth // 2) * linear(every, 2 * width, width)
    for layer in range(depth):
        rows = every if layer < depth - 1 else wanted
        cost += 2 * linear(every, width, width) + 2 * linear(rows, width, width) + 3 * linear(rows, width, inner)
        cost += attention(rows * (prompt + frames), width)
    return cost + _head(config, wanted)


def _head(config: S2MelConfig, rows: int) -> Cost:
    """Skip connection, WaveNet and output layers of the flow's network."""
    width, channels, bands = config.dit.hidden_dim, config.wavenet.hidden_dim, config.dit.in_channels
    layers, kernel = config.wavenet.num_layers, config.wavenet.kernel_size
    return total(
        linear(rows, width + bands, width),
        2 * linear(rows, width, channels),
        layers * linear(rows, kernel * channels, 2 * channels),
        (layers - 1) * linear(rows, channels, 2 * channels),
        2 * linear(rows, channels, channels),
        linear(rows, channels, bands),
    )


def flow_constants(config: S2MelConfig, prompt: int, frames: int, steps: int) -> Cost:
    """What is computed once per segment: the constant input, and the tables of all steps."""
    dit, channels, layers = config.dit, config.wavenet.hidden_dim, config.wavenet.num_layers
    width = dit.hidden_dim
    every = prompt + frames
    inputs = linear(every, dit.content_dim, width) + linear(every, width, width)
    inputs += linear(prompt, dit.in_channels, width) + linear(1, config.style_dim, width) + Cost(2 * width * width)
    times = total(
        linear(steps, 256, width) + linear(steps, width, width),
        linear(steps, 256, channels) + linear(steps, channels, channels),
        (2 * dit.depth + 1) * linear(steps, width, 2 * width),
        linear(steps, channels, 2 * channels * layers),
        linear(steps, width, 2 * channels),
    )
    return inputs + times


def flow_segment(config: S2MelConfig, prompt: int, frames: int, steps: int, branches: int = 2) -> Cost:
    """All steps of one segment."""
    return flow_constants(config, prompt, frames, steps) + steps * flow_step(config, prompt, frames, branches)


def bigvgan(config: BigVGANConfig, frames: int) -> Cost:
    """The vocoder over `frames` mel frames, the filters around its activations included."""
    return bigvgan_convolutions(config, frames) + Cost(2 * FILTER_TAPS * bigvgan_activations(config, frames))


def bigvgan_convolutions(config: BigVGANConfig, frames: int) -> Cost:
    channels, samples = config.upsample_initial_channel, frames
    cost = linear(frames, 7 * config.num_mels, channels)
    for rate, kernel in zip(config.upsample_rates, config.upsample_kernel_sizes, strict=True):
        cost += linear(samples, kernel * channels, channels // 2)
        channels, samples = channels // 2, samples * rate
        for width, dilations in zip(config.resblock_kernel_sizes, config.resblock_dilation_sizes, strict=True):
            cost += 2 * len(dilations) * linear(samples, width * channels, channels)
    return cost + linear(samples, 7 * channels, 1) + bigvgan_source(config, frames)


def bigvgan_source(config: BigVGANConfig, frames: int) -> Cost:
    """Estimator of the pitch, and what filters and weighs the excitation; nothing for a model without a source."""
    width = config.pitch_channels
    if not width:
        return Cost(0)
    cost = linear(frames, KERNEL * config.num_mels, width) + linear(frames, width, PITCH_CLASSES + 1)
    cost += (LAYERS - 1) * linear(frames, KERNEL * width, width)
    channels, samples, stride = config.upsample_initial_channel, frames, config.hop_size
    for rate in config.upsample_rates:
        channels, samples, stride = channels // 2, samples * rate, stride // rate
        kernel = 2 * stride if stride > 1 else OUTER_KERNEL
        cost += linear(samples, EXCITATION_CHANNELS * kernel, channels) + linear(samples, channels, channels)
    return cost


def bigvgan_activations(config: BigVGANConfig, frames: int) -> int:
    """Samples at the base rate that pass an activation."""
    channels, samples, passed = config.upsample_initial_channel, frames, 0
    for rate in config.upsample_rates:
        channels, samples = channels // 2, samples * rate
        passed += channels * samples * sum(2 * len(dilations) for dilations in config.resblock_dilation_sizes)
    return passed + channels * samples
