"""w2v-BERT against golden arrays, against the plain formula of its attention, and its behaviour under masks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from indextts2.audio.features import seamless_features
from indextts2.config import W2VBertConfig
from indextts2.errors import CheckpointError, ConfigError, UsageError
from indextts2.models.semantic.relative_attention import CPU_QUERY_BLOCK, RelativeKeyAttention, distance_bias
from indextts2.models.semantic.statistics import FeatureStatistics
from indextts2.models.semantic.w2v_bert import W2VBert
from tests.conftest import Golden, golden_error, relative_l2
from tests.models.semantic.conftest import W2V_FILE, manifest_shapes, output_layer, w2v_config

TINY = W2VBertConfig(
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    feature_projection_input_dim=20,
    conv_depthwise_kernel_size=31,
)


@pytest.fixture
def tiny() -> W2VBert:
    torch.manual_seed(0)
    return W2VBert(TINY, 3).eval()


@pytest.mark.parametrize("speaker", ["spk", "emo"])
def test_matches_golden(w2v_bert: W2VBert, statistics: FeatureStatistics, golden: Golden, speaker: str) -> None:
    features = torch.from_numpy(golden[f"{speaker}_w2v_input_features"])
    mask = torch.from_numpy(golden[f"{speaker}_w2v_attention_mask"])
    with torch.inference_mode():
        states = list(w2v_bert.hidden_states(features, mask))
        assert torch.equal(states[-1], w2v_bert(features, mask))
    if speaker == "spk":
        assert golden_error(states[0], golden["spk_w2v_feature_projection"]) < 1e-5
        assert golden_error(states[1], golden["spk_w2v_layer0"]) < 1e-5
    assert len(states) == len(w2v_bert.encoder.layers) + 1
    assert golden_error(states[-1], golden[f"{speaker}_w2v_hidden17"]) < 1e-5
    assert golden_error(statistics(states[-1]), golden[f"{speaker}_cond_emb"]) < 1e-5


def test_chain_from_samples_matches_golden(w2v_bert: W2VBert, statistics: FeatureStatistics, golden: Golden) -> None:
    features, mask = (torch.from_numpy(x).unsqueeze(0) for x in seamless_features(golden["spk_as_emo_audio_16k"][0]))
    with torch.inference_mode():
        assert golden_error(statistics(w2v_bert(features, mask)), golden["spk_as_emo_cond_emb"]) < 1e-5


@pytest.mark.parametrize("size", ["small", "full"])
def test_state_dict_is_the_checkpoint(reference: Path, size: str) -> None:
    with torch.device("meta"):
        model = W2VBert(w2v_config(reference, size), output_layer(reference, size))
    expected = manifest_shapes(reference, size, W2V_FILE, model.UNUSED_KEYS)
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == expected
    if size == "full":
        assert sum(p.numel() for p in model.encoder.parameters()) == 411_064_896


@pytest.mark.parametrize(("rows", "start", "keys"), [(1, 0, 1), (7, 0, 7), (5, 40, 60), (60, 0, 60), (3, 57, 60)])
def test_distance_bias_is_the_gather(rows: int, start: int, keys: int) -> None:
    left, right = 11, 3
    scores = torch.randn(2, 3, rows, left + 1 + right)
    distance = torch.arange(keys)[None, :] - (start + torch.arange(rows))[:, None]
    index = distance.clamp(-left, right) + left
    expected = scores.gather(-1, index.expand(2, 3, rows, keys))
    assert torch.equal(distance_bias(scores, start, keys, left, right), expected)


def plain_attention(attention: RelativeKeyAttention, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The formula of spec 05 section 3, one query and head at a time, float64."""
    attention, x = attention.double(), x.double()
    heads, size = attention.heads, x.shape[-1] // attention.heads
    q, k, v = (f(x).unflatten(-1, (heads, size)) for f in (attention.linear_q, attention.linear_k, attention.linear_v))
    out = torch.zeros_like(q)
    for b in range(x.shape[0]):
        for i in range(x.shape[1]):
            d = (torch.arange(x.shape[1]) - i).clamp(-attention.left, attention.right) + attention.left
            for h in range(heads):
                score = (k[b, :, h] + attention.distance_embedding.weight[d]) @ q[b, i, h] / size**0.5
                score = score.masked_fill(mask[b] == 0, -torch.inf)
                out[b, i, h] = score.softmax(0) @ v[b, :, h]
    return attention.linear_out(out.flatten(2))


def test_attention_is_the_plain_formula() -> None:
    torch.manual_seed(0)
    frames = CPU_QUERY_BLOCK + 22  # two blocks, and both clamps in reach
    attention = RelativeKeyAttention(32, 2, left=64, right=8)
    x, mask = torch.randn(2, frames, 32), torch.ones(2, frames)
    mask[0, -1] = 0
    with torch.no_grad():
        actual = attention(x, mask.bool())
        assert relative_l2(actual, plain_attention(attention, x, mask)) < 1e-6


def test_masked_row_changes_no_other_row(tiny: W2VBert) -> None:
    torch.manual_seed(1)
    features, mask = torch.randn(1, 150, 20), torch.ones(1, 150, dtype=torch.int32)
    mask[0, -1] = 0
    with torch.inference_mode():
        masked, alone = tiny(features, mask), tiny(features[:, :-1])
        assert relative_l2(masked[:, :-1], alone) < 1e-6
        assert relative_l2(tiny(features)[:, :-1], alone) > 1e-3  # without the mask it would
        features[0, -1] = 7.0
        assert torch.equal(tiny(features, mask), masked)  # its own input is zeroed too


def test_batch_equals_single(tiny: W2VBert) -> None:
    torch.manual_seed(2)
    features, lengths = torch.randn(3, 140, 20), (140, 133, 9)
    mask = torch.stack([torch.arange(140) < n for n in lengths])
    with torch.inference_mode():
        batch = tiny(features, mask)
        for row, length in enumerate(lengths):
            assert relative_l2(batch[row, :length], tiny(features[row : row + 1, :length])[0]) < 1e-6


def test_gradient_reaches_every_parameter() -> None:
    torch.manual_seed(0)
    model = W2VBert(TINY, 2)
    mask = torch.ones(2, 150)
    mask[1, 100:] = 0
    model(torch.randn(2, 150, 20), mask).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    assert model.encoder.layers[0].self_attn.distance_embedding.weight.grad.abs().sum() > 0


def test_attention_gradient_is_the_derivative() -> None:
    torch.manual_seed(0)
    attention = RelativeKeyAttention(4, 2, left=3, right=1).double()
    assert torch.autograd.gradcheck(attention, (torch.randn(1, 7, 4, dtype=torch.float64, requires_grad=True),))


def test_bad_arguments_are_typed_errors(tiny: W2VBert) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.3"):
        W2VBert(TINY, 4)
    with pytest.raises(ConfigError, match="num_attention_heads"):
        W2VBert(replace(TINY, num_attention_heads=5), 1)
    with pytest.raises(UsageError, match="features must have shape"):
        tiny(torch.zeros(1, 5, 21))
    with pytest.raises(UsageError, match="mask"):
        tiny(torch.zeros(1, 5, 20), torch.ones(1, 6))


def test_statistics_are_checked() -> None:
    good = torch.ones(4)
    for mean, var, message in [
        (torch.ones(3), good, "mean has shape"),
        (good, torch.tensor([1.0, 0.0, 1.0, 1.0]), "above 0"),
        (torch.tensor([1.0, torch.nan, 1.0, 1.0]), good, "mean holds NaN"),
    ]:
        with pytest.raises(CheckpointError, match=message):
            FeatureStatistics.from_tensors(mean, var, channels=4)
    with pytest.raises(UsageError):
        FeatureStatistics.from_tensors(good, good, channels=4)(torch.ones(1, 2, 5))
