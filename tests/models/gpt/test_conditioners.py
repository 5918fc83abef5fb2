"""Conformer and perceiver: parity with golden arrays, formulas on plain numbers, masks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from indextts2.config import ConformerConfig
from indextts2.errors import ConfigError, UsageError
from indextts2.models.emotion.matrix import merge_emotion_vectors
from indextts2.models.gpt import conformer
from indextts2.models.gpt.conformer import ConformerEncoder, PositionAttention, sinusoidal_positions
from indextts2.models.gpt.perceiver import PerceiverResampler
from indextts2.models.gpt.unified_voice import UnifiedVoice
from tests.conftest import Golden, golden_error, relative_l2

SIZES = ConformerConfig(output_size=16, linear_units=24, attention_heads=2, num_blocks=2)


@pytest.fixture
def encoder() -> ConformerEncoder:
    torch.manual_seed(0)
    encoder = ConformerEncoder(SIZES, input_dim=12).eval().requires_grad_(False)
    for name, parameter in encoder.named_parameters():
        if "pos_bias" in name:
            parameter.copy_(torch.randn_like(parameter))
    return encoder


def test_speaker_conditioner_matches_golden(voice: UnifiedVoice, features: dict[str, Tensor], golden: Golden) -> None:
    seen: dict[str, Tensor] = {}
    encoder = voice.conditioning_encoder
    hook = encoder.encoders[0].register_forward_hook(lambda _m, inputs, out: seen.update(embed=inputs[0], layer0=out))
    encoded, _ = encoder(features["spk"])
    hook.remove()
    assert golden_error(seen["embed"], golden["cond_embed"]) < 1e-5
    assert golden_error(seen["layer0"], golden["cond_layer0"]) < 1e-5
    assert golden_error(encoded, golden["cond_encoder"]) < 1e-5
    assert golden_error(voice.speaker_latents(features["spk"]), golden["speech_conditioning_latent"]) < 1e-5


def test_emotion_conditioner_matches_golden(voice: UnifiedVoice, features: dict[str, Tensor], golden: Golden) -> None:
    encoded, _ = voice.emo_conditioning_encoder(features["emo"])
    assert golden_error(encoded, golden["emo_encoder"]) < 1e-5
    assert golden_error(voice.emo_perceiver_encoder(encoded), golden["emo_perceiver"]) < 1e-5
    assert golden_error(voice.emotion_vector(features["emo"]), golden["emovec_emo"]) < 1e-5
    assert golden_error(voice.emotion_vector(features["spk"]), golden["emovec_spk"]) < 1e-5


def test_base_of_the_vector_mode(voice: UnifiedVoice, features: dict[str, Tensor], golden: Golden) -> None:
    """Without emotion audio, that is the speaker's file read by the emotion path."""
    speaker, same = voice.emotion_vector(features["spk"]), voice.emotion_vector(features["spk_as_emo"])
    assert golden_error(merge_emotion_vectors(speaker, same, 1.0), golden["emo_vector_base"]) < 1e-5


@pytest.mark.parametrize("channels_at_once", [1, 3, 16])
def test_subsampling_is_a_convolution_and_a_linear_layer(
    channels_at_once: int, encoder: ConformerEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many channels are computed at a time, with a rest or without."""
    layer, x = encoder.embed, torch.randn(2, 21, 12)
    monkeypatch.setattr(conformer, "ACTIVATIONS", channels_at_once * 5 * 2 * 10)
    expected = layer.out(layer.conv(x[:, None]).transpose(1, 2).flatten(2))
    assert relative_l2(layer(x), expected) < 1e-6


def test_gradients_of_the_subsampling(encoder: ConformerEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = encoder.embed.requires_grad_(), torch.randn(2, 21, 12)
    monkeypatch.setattr(conformer, "ACTIVATIONS", 3 * 5 * 2 * 10)
    layer.out(layer.conv(x[:, None]).transpose(1, 2).flatten(2)).square().sum().backward()
    expected = [parameter.grad for parameter in layer.parameters()]
    layer.zero_grad()
    layer(x).square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), expected, strict=True):
        assert gradient is not None and parameter.grad is not None
        assert relative_l2(parameter.grad, gradient) < 1e-5


@pytest.mark.parametrize(("frames", "subsampled"), [(3, 1), (66, 32), (75, 37), (749, 374)])
def test_frame_count(encoder: ConformerEncoder, frames: int, subsampled: int) -> None:
    encoded, mask = encoder(torch.randn(1, frames, 12))
    assert encoded.shape == (1, subsampled, 16)
    assert mask is None


def test_too_few_frames(encoder: ConformerEncoder) -> None:
    with pytest.raises(UsageError, match="2 frames"):
        encoder(torch.randn(1, 2, 12))


def test_other_input_layer() -> None:
    with pytest.raises(ConfigError, match="conv2d4"):
        ConformerEncoder(ConformerConfig(input_layer="conv2d4"), 12)


def test_heads_must_divide() -> None:
    with pytest.raises(ConfigError, match="no multiple"):
        ConformerEncoder(ConformerConfig(output_size=10, attention_heads=4), 12)


def test_positions() -> None:
    table = sinusoidal_positions(4, 6, torch.device("cpu"))
    for p in range(4):
        for i in range(3):
            angle = p * math.exp(2 * i * -math.log(10000) / 6)
            assert table[p, 2 * i] == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[p, 2 * i + 1] == pytest.approx(math.cos(angle), abs=1e-6)


def test_attention_is_the_formula_without_relative_shift() -> None:
    torch.manual_seed(1)
    attention = PositionAttention(8, 2).requires_grad_(False)
    attention.pos_bias_u.copy_(torch.randn(2, 4))
    attention.pos_bias_v.copy_(torch.randn(2, 4))
    x, positions = torch.randn(1, 5, 8), sinusoidal_positions(5, 8, torch.device("cpu"))
    q, k, v = (f(x[0]).view(5, 2, 4) for f in (attention.linear_q, attention.linear_k, attention.linear_v))
    p = attention.linear_pos(positions).view(5, 2, 4)
    expected = torch.zeros(5, 2, 4)
    for h in range(2):
        for i in range(5):
            scores = torch.stack(
                [
                    ((q[i, h] + attention.pos_bias_u[h]) @ k[j, h] + (q[i, h] + attention.pos_bias_v[h]) @ p[j, h]) / 2
                    for j in range(5)
                ]
            )
            expected[i, h] = scores.softmax(0) @ v[:, h]
    assert relative_l2(attention(x, positions, None)[0], attention.linear_out(expected.flatten(1))) < 1e-6


def test_padded_batch_equals_single_clips(encoder: ConformerEncoder) -> None:
    clips = [torch.randn(frames, 12) for frames in (21, 14, 3)]
    batch = torch.nn.utils.rnn.pad_sequence(clips, batch_first=True, padding_value=5.0)
    lengths = torch.tensor([len(clip) for clip in clips])
    torch.manual_seed(0)
    perceiver = PerceiverResampler(16, 12, 3, heads=2, head_dim=4, depth=2, mult=2).requires_grad_(False)
    encoded, mask = encoder(batch, lengths)
    summaries = perceiver(encoded, mask)
    assert mask.sum(1).tolist() == [10, 6, 1]
    for i, clip in enumerate(clips):
        alone, _ = encoder(clip[None])
        assert relative_l2(encoded[i : i + 1, : alone.shape[1]], alone) < 1e-5
        assert relative_l2(summaries[i : i + 1], perceiver(alone)) < 1e-5


def test_perceiver_with_one_context_frame() -> None:
    torch.manual_seed(0)
    perceiver = PerceiverResampler(6, 12, 3, heads=2, head_dim=4, depth=2, mult=2)
    out = perceiver(torch.randn(2, 1, 6))
    assert out.shape == (2, 3, 12)
    # Every row has the root mean square of gamma (ones).
    assert torch.allclose(out.square().mean(-1), torch.ones(2, 3), atol=1e-5)


def test_perceiver_inner_size_rounds_down() -> None:
    perceiver = PerceiverResampler(6, 1024, 1, heads=4, head_dim=64, depth=1, mult=2)
    assert perceiver.layers[0][1][0].weight.shape == (2730, 1024)
