"""The stages of a synthesis, each with its work, our module and the plain one on the same weights and input."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from benchmarks import costs
from benchmarks.baselines import flow as plain_flow
from benchmarks.baselines.campplus import PlainCampPlus
from benchmarks.baselines.conditioner import PlainConditioners
from benchmarks.baselines.gpt import PlainGPT, PlainRequest
from benchmarks.baselines.length_regulator import PlainLengthRegulator
from benchmarks.baselines.semantic_codec import PlainSemanticCodec
from benchmarks.baselines.vocoder import PlainBigVGAN
from benchmarks.baselines.w2v_bert import PlainW2VBert
from benchmarks.costs import Cost
from benchmarks.sizes import model_config, network
from indextts2.config import GenerationConfig
from indextts2.models.gpt.generation import Request, advance
from indextts2.models.s2mel.flow_matching import sample

if TYPE_CHECKING:
    from indextts2.models.gpt.unified_voice import UnifiedVoice
    from indextts2.models.s2mel.dit import DiT
    from indextts2.models.s2mel.length_regulator import LengthRegulator
    from indextts2.models.semantic.codec import SemanticCodec
    from indextts2.models.semantic.w2v_bert import W2VBert
    from indextts2.models.speaker.campplus import CampPlus
    from indextts2.models.vocoder.bigvgan import BigVGAN

SECONDS = 5.0  # of reference, prompt and target
VOCODER_SECONDS = 2.0
FEATURES_HZ, FBANK_HZ = 50, 100
TEXT_TOKENS = 60

Result = Tensor | list[int]


@dataclass(frozen=True)
class Stage:
    """One call of `ours` or `plain` does `amount` units of work, at `cost`."""

    unit: str
    amount: float
    cost: Cost
    ours: Callable[[], Result]
    plain: Callable[[], Result]


class Bench:
    """Configuration, networks and inputs of one size. It holds one network at a time."""

    def __init__(self, size: str, calls: int = 1, decode_steps: int = 16) -> None:
        """`calls`: how often each stage will be called; a call of a decoding stage takes so many steps."""
        self.config = model_config(size)
        self.calls, self.decode_steps = calls, decode_steps
        self._name = ""
        self._network: nn.Module | None = None

    def network(self, name: str) -> nn.Module:
        if self._network is None or self._name != name:
            self._network = None  # let go of the last one before the next is made
            self._name, self._network = name, network(name, self.config)
        return self._network

    def random(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(2))

    @property
    def mel_frames(self) -> int:
        mel = self.config.s2mel.mel
        return int(SECONDS * mel.sample_rate / mel.hop_length)

    @property
    def codes(self) -> int:
        return round(self.mel_frames / self.config.s2mel.frames_per_code)


def w2v_bert(bench: Bench) -> Stage:
    config, layers = bench.config.w2v_bert, bench.config.semantic_output_layer
    assert config is not None
    ours = cast("W2VBert", bench.network("w2v_bert"))
    frames = int(SECONDS * FEATURES_HZ)
    features, mask = bench.random(1, frames, config.feature_projection_input_dim), torch.ones(1, frames)
    plain = PlainW2VBert(ours)
    cost = costs.w2v_bert(config, layers, frames)
    return Stage("ref s", SECONDS, cost, lambda: ours(features, mask), lambda: plain(features, mask))


def codec(bench: Bench) -> Stage:
    config, ours = bench.config.semantic_codec, cast("SemanticCodec", bench.network("codec"))
    frames = int(SECONDS * FEATURES_HZ)
    features, plain = bench.random(1, frames, config.hidden_size), PlainSemanticCodec(ours)
    cost = costs.semantic_codec(config, frames)
    return Stage("ref s", SECONDS, cost, lambda: ours.quantize(features)[1], lambda: plain(features)[1])


def campplus(bench: Bench) -> Stage:
    config, ours = bench.config.campplus, cast("CampPlus", bench.network("campplus"))
    frames = int(SECONDS * FBANK_HZ)
    fbank, plain = bench.random(1, frames, config.feat_dim), PlainCampPlus(ours)
    return Stage("ref s", SECONDS, costs.campplus(config, frames), lambda: ours(fbank), lambda: plain(fbank))


def speaker_conditioner(bench: Bench) -> Stage:
    config, ours = bench.config.gpt, cast("UnifiedVoice", bench.network("gpt"))
    frames = int(SECONDS * FEATURES_HZ)
    features, plain = bench.random(1, frames, config.condition_input_dim), PlainConditioners(ours)
    cost = costs.speaker_conditioner(config, frames)
    ours_call, plain_call = ours.speaker_latents, plain.speaker_latents
    return Stage("ref s", SECONDS, cost, lambda: ours_call(features), lambda: plain_call(features))


def emotion_conditioner(bench: Bench) -> Stage:
    config, ours = bench.config.gpt, cast("UnifiedVoice", bench.network("gpt"))
    frames = int(SECONDS * FEATURES_HZ)
    features, plain = bench.random(1, frames, config.condition_input_dim), PlainConditioners(ours)
    cost = costs.emotion_conditioner(config, frames)
    ours_call, plain_call = ours.emotion_vector, plain.emotion_vector
    return Stage("ref s", SECONDS, cost, lambda: ours_call(features), lambda: plain_call(features))


def _prefix(bench: Bench, gpt: UnifiedVoice) -> Tensor:
    """The prefix (1, N, D) of a segment of TEXT_TOKENS tokens."""
    config = bench.config.gpt
    latents = bench.random(1, config.condition_latents, config.model_dim)
    ids = torch.arange(2, 2 + TEXT_TOKENS) % (config.number_text_tokens - 2) + 2
    return gpt.prefix(gpt.conditioning(latents, bench.random(1, config.model_dim)), ids)


def gpt_prefill(bench: Bench) -> Stage:
    config, ours = bench.config.gpt, cast("UnifiedVoice", bench.network("gpt"))
    prefix, plain = _prefix(bench, ours), PlainGPT(ours)
    beams = (bench.config.generation or GenerationConfig()).num_beams
    return Stage(
        "segment", 1, costs.gpt_prefill(config, prefix.shape[1] + 1),
        lambda: ours.logits(ours.prefill(prefix).hidden), lambda: plain.prefill(prefix, beams)[0][:1],
    )  # fmt: skip


def _decode(bench: Bench, beams: int) -> Stage:
    config, ours = bench.config.gpt, cast("UnifiedVoice", bench.network("gpt"))
    prefix = _prefix(bench, ours)
    # Neither a stop token nor the limit may end the decoding while it is timed.
    steps = bench.decode_steps * bench.calls + 2
    options = dataclasses.replace(
        bench.config.generation or GenerationConfig(), num_beams=beams, min_new_tokens=steps, max_mel_tokens=steps
    )
    request = Request(ours, prefix, options, torch.Generator().manual_seed(3))
    plain = PlainRequest(PlainGPT(ours), prefix, options, torch.Generator().manual_seed(3))

    def ours_call() -> list[int]:
        fed = []
        for _ in range(bench.decode_steps):
            fed += request.decoder.codes
            advance(ours, [request])
        return fed

    def plain_call() -> list[int]:
        return [code for _ in range(bench.decode_steps) for code in plain.advance()]

    cost = costs.decode_step(config, beams, prefix.shape[1] + 1, steps / 2)
    return Stage("step", bench.decode_steps, bench.decode_steps * cost, ours_call, plain_call)


def decode_1(bench: Bench) -> Stage:
    return _decode(bench, 1)


def decode_3(bench: Bench) -> Stage:
    return _decode(bench, 3)


def latents(bench: Bench) -> Stage:
    config, ours = bench.config.gpt, cast("UnifiedVoice", bench.network("gpt"))
    prefix, plain = _prefix(bench, ours), PlainGPT(ours)
    codes = torch.arange(bench.codes) * 7 % config.start_mel_token
    prompt = ours.prefill(prefix)
    cost = costs.latents(config, prompt.rows, len(codes))
    return Stage("s", SECONDS, cost, lambda: ours.latents(prompt, codes), lambda: plain.latents(prefix, codes))


def length_regulator(bench: Bench) -> Stage:
    config, ours = bench.config.s2mel.length_regulator, cast("LengthRegulator", bench.network("length_regulator"))
    content, frames = bench.random(1, bench.codes, config.in_channels), bench.mel_frames
    plain = PlainLengthRegulator(ours)
    cost = costs.length_regulator(config, bench.codes, frames)
    return Stage("s", SECONDS, cost, lambda: ours(content, frames), lambda: plain(content, frames))


def _flow_inputs(bench: Bench) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Condition (1, T, C), prompt mel (1, M, P), style (1, S) and noise (1, M, T); P and T - P of equal length."""
    config, prompt = bench.config.s2mel, bench.mel_frames
    mu = bench.random(1, 2 * prompt, config.dit.content_dim)
    noise = bench.random(1, config.dit.in_channels, 2 * prompt)
    return mu, bench.random(1, config.dit.in_channels, prompt), bench.random(1, config.style_dim), noise


def flow_step(bench: Bench) -> Stage:
    ours, (mu, prompt_mel, style, noise) = cast("DiT", bench.network("dit")), _flow_inputs(bench)
    prompt = prompt_mel.shape[-1]
    condition = ours.with_null_branch(ours.condition(prompt_mel.transpose(1, 2), mu, style))
    tables = ours.time_tables(torch.tensor([0.5]))
    padded = torch.zeros_like(noise)
    padded[..., :prompt] = prompt_mel
    state = torch.cat((torch.zeros_like(prompt_mel), noise[..., prompt:]), dim=-1)
    both = [torch.cat((part, torch.zeros_like(part))) for part in (padded, style, mu)]
    plain = plain_flow.PlainDiT(ours)

    def ours_call() -> Tensor:
        x = state.transpose(1, 2)
        return ours.velocity(torch.cat((x, x)), condition, tables, prompt).transpose(1, 2)

    def plain_call() -> Tensor:
        return plain(torch.cat((state, state)), both[0], torch.tensor([0.5, 0.5]), both[1], both[2])[..., prompt:]

    cost = costs.flow_step(bench.config.s2mel, prompt, prompt)
    return Stage("step", 1, cost, ours_call, plain_call)


def flow_segment(bench: Bench) -> Stage:
    config, ours = bench.config.s2mel, cast("DiT", bench.network("dit"))
    inputs = _flow_inputs(bench)
    plain = plain_flow.PlainDiT(ours)
    cost = costs.flow_segment(config, bench.mel_frames, bench.mel_frames, config.steps)
    return Stage(
        "segment", 1, cost,
        lambda: sample(ours, *inputs, steps=config.steps, cfg_rate=config.cfg_rate),
        lambda: plain_flow.sample(plain, *inputs, steps=config.steps, cfg_rate=config.cfg_rate),
    )  # fmt: skip


def vocoder(bench: Bench) -> Stage:
    config, ours = bench.config.bigvgan, cast("BigVGAN", bench.network("bigvgan"))
    assert config is not None
    frames = int(VOCODER_SECONDS * config.sampling_rate / config.hop_size)
    mel = bench.random(1, config.num_mels, frames)
    plain = PlainBigVGAN(ours)
    cost = costs.bigvgan(config, frames)
    return Stage("s", VOCODER_SECONDS, cost, lambda: ours(mel), lambda: plain(mel))


STAGES: dict[str, Callable[[Bench], Stage]] = {
    "w2v-bert": w2v_bert,
    "codec": codec,
    "campplus": campplus,
    "speaker-conditioner": speaker_conditioner,
    "emotion-conditioner": emotion_conditioner,
    "gpt-prefill": gpt_prefill,
    "decode-1": decode_1,
    "decode-3": decode_3,
    "latents": latents,
    "length-regulator": length_regulator,
    "flow-step": flow_step,
    "flow-segment": flow_segment,
    "vocoder": vocoder,
}
