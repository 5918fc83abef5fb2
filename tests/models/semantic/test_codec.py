"""Semantic codec against golden arrays, its lookup against the plain distance, and its training path."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from indextts2.config import ModelConfig, SemanticCodecConfig, load_yaml, parse_model_config
from indextts2.errors import GenerationError, UsageError
from indextts2.models.semantic.codec import SemanticCodec, SemanticCodecDecoder
from indextts2.models.semantic.quantizer import LOOKUP_ROWS, FactorizedVectorQuantizer
from indextts2.models.semantic.statistics import FeatureStatistics
from indextts2.models.semantic.w2v_bert import W2VBert
from tests.conftest import Golden, golden_error, relative_l2
from tests.models.semantic.conftest import CODEC_FILE, manifest_shapes

TINY = SemanticCodecConfig(
    codebook_size=50, hidden_size=24, codebook_dim=4, vocos_dim=16, vocos_intermediate_dim=20, vocos_num_layers=2
)


def model_config(reference: Path, size: str) -> ModelConfig:
    return parse_model_config(load_yaml(reference / "checkpoint_files" / f"config_{size}.yaml"))


def folded(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weight norm in float64: W = g v / ||v||, the norm over all axes but the first."""
    result = {}
    for key, value in tensors.items():
        if key.endswith("weight_g"):
            direction = tensors[key[:-1] + "v"].double()
            norm = direction.flatten(1).norm(dim=1).view(-1, 1, 1)
            result[key[:-2]] = (value.double() * direction / norm).float()
        elif not key.endswith("weight_v"):
            result[key] = value
    return result


@pytest.fixture(scope="module")
def codec(reference: Path, small_checkpoint: Path) -> SemanticCodec:
    codec = SemanticCodec(model_config(reference, "small").semantic_codec)
    tensors = folded(load_file(small_checkpoint / CODEC_FILE))
    codec.load_state_dict({key: value for key, value in tensors.items() if not key.startswith("decoder.")})
    return codec.eval()


@pytest.fixture(scope="module")
def features(w2v_bert: W2VBert, statistics: FeatureStatistics, golden: Golden) -> torch.Tensor:
    """Normalised semantic features of the prompt; golden holds slices only, so they come from the encoder."""
    with torch.inference_mode():
        return statistics(w2v_bert(torch.from_numpy(golden["spk_w2v_input_features"]))).clone()


@pytest.fixture
def tiny() -> SemanticCodec:
    torch.manual_seed(0)
    return SemanticCodec(TINY)


def test_quantize_matches_golden(codec: SemanticCodec, features: torch.Tensor, golden: Golden) -> None:
    with torch.inference_mode():
        encoded = codec.encode(features)
        latents = codec.vector_quantizer.in_project(encoded)
        indices, embedding = codec.quantize(features)
    assert golden_error(encoded, golden["codec_encoder_out"]) < 1e-5
    assert golden_error(latents.transpose(1, 2), golden["codec_z_e"]) < 1e-5
    assert indices.dtype == torch.int64
    assert torch.equal(indices, torch.from_numpy(golden["ref_codes"]))
    assert golden_error(embedding, golden["S_ref"]) < 1e-5


def test_lookup_from_golden_latents(codec: SemanticCodec, golden: Golden) -> None:
    latents = torch.from_numpy(golden["codec_z_e"]).transpose(1, 2)
    assert torch.equal(codec.vector_quantizer.lookup(latents), torch.from_numpy(golden["ref_codes"]))


def test_embed_matches_golden(codec: SemanticCodec, golden: Golden, reference: Path) -> None:
    plan = json.loads((reference / "inputs" / "plan.json").read_text())
    codes = torch.from_numpy(golden[plan["downstream_codes"]])
    with torch.inference_mode():
        assert golden_error(codec.embed(codes), golden["vq2emb"]) < 1e-5


@pytest.mark.parametrize("size", ["small", "full"])
def test_state_dict_is_the_checkpoint(reference: Path, size: str) -> None:
    config = model_config(reference, size).semantic_codec
    with torch.device("meta"):
        codec, decoder = SemanticCodec(config), SemanticCodecDecoder(config)
    shapes = {key: tuple(value.shape) for key, value in codec.state_dict().items()}
    assert shapes == manifest_shapes(reference, size, CODEC_FILE, SemanticCodec.UNUSED_KEYS)
    shapes |= {f"decoder.{key}": tuple(value.shape) for key, value in decoder.state_dict().items()}
    assert shapes == manifest_shapes(reference, size, CODEC_FILE, ())


def test_lookup_is_the_nearest_unit_vector() -> None:
    torch.manual_seed(0)
    quantizer = FactorizedVectorQuantizer(TINY)
    latents = torch.randn(1, LOOKUP_ROWS + 3, 4)  # more than one chunk
    unit, codes = (x / x.norm(dim=-1, keepdim=True) for x in (latents[0].double(), quantizer.codebook.weight.double()))
    expected = torch.cdist(unit, codes).argmin(dim=-1)
    assert torch.equal(quantizer.lookup(latents)[0], expected)
    assert torch.equal(quantizer.lookup(latents * 100)[0], expected)


def test_ties_take_the_lowest_index_and_raw_rows_leave() -> None:
    quantizer = FactorizedVectorQuantizer(TINY)
    with torch.no_grad():
        quantizer.codebook.weight.copy_(torch.eye(4).repeat(13, 1)[:50])
        quantizer.codebook.weight[3::4] *= 5.0
    latents = torch.tensor([[[0.0, 0.0, 0.0, 2.0], [0.0, 3.0, 0.0, 0.0]]])
    indices = quantizer.lookup(latents)
    assert indices.tolist() == [[3, 1]]
    expected = quantizer.out_project(torch.tensor([[[0.0, 0.0, 0.0, 5.0], [0.0, 1.0, 0.0, 0.0]]]))
    assert torch.equal(quantizer.embed(indices), expected)


@pytest.mark.parametrize("bad", [-1, 50])
def test_code_outside_the_codebook(tiny: SemanticCodec, bad: int) -> None:
    with pytest.raises(GenerationError, match=rf"code {bad} .* 0\.\.49"):
        tiny.embed(torch.tensor([[0, bad, 49]]))
    assert tiny.embed(torch.tensor([[0, 49]])).shape == (1, 2, 24)
    assert tiny.embed(torch.zeros(1, 0, dtype=torch.int64)).shape == (1, 0, 24)


def test_wrong_channels(tiny: SemanticCodec) -> None:
    with pytest.raises(UsageError, match="24"):
        tiny.quantize(torch.zeros(1, 5, 23))


def test_batch_equals_single(tiny: SemanticCodec) -> None:
    torch.manual_seed(1)
    features, lengths = torch.randn(3, 40, 24), (40, 21, 5)
    mask = torch.stack([torch.arange(40) < n for n in lengths])
    with torch.inference_mode():
        encoded, (indices, embedding) = tiny.encode(features, mask), tiny.quantize(features, mask)
        for row, length in enumerate(lengths):
            single = features[row : row + 1, :length]
            assert relative_l2(encoded[row, :length], tiny.encode(single)[0]) < 1e-5
            assert torch.equal(indices[row, :length], tiny.quantize(single)[0][0])
            assert relative_l2(embedding[row, :length], tiny.quantize(single)[1][0]) < 1e-5


def test_training_losses_and_gradients(tiny: SemanticCodec) -> None:
    torch.manual_seed(2)
    features, mask = torch.randn(2, 30, 24), torch.ones(2, 30)
    mask[1, 20:] = 0
    decoder = SemanticCodecDecoder(TINY)
    result = tiny.quantize_with_losses(features, mask)
    indices, embedding = tiny.quantize(features, mask)
    assert torch.equal(result.indices, indices)
    assert relative_l2(result.embedding.detach(), embedding.detach()) < 1e-5
    difference = (result.latents - tiny.vector_quantizer.codebook(indices))[mask.bool()]
    assert torch.allclose(result.codebook_loss, difference.square().mean())
    assert torch.allclose(result.commitment_loss, result.codebook_loss)

    (decoder(result.embedding, mask) - features).square().mean().backward(retain_graph=True)
    assert tiny.vector_quantizer.codebook.weight.grad is None  # straight through: only the losses move codes
    (result.codebook_loss + result.commitment_loss).backward()
    for name, parameter in [*tiny.named_parameters(), *decoder.named_parameters()]:
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
    used = tiny.vector_quantizer.codebook.weight.grad.abs().sum(dim=-1) > 0
    assert used.nonzero().flatten().tolist() == result.indices[mask.bool()].unique().tolist()


def test_straight_through_gradient_is_that_of_the_code(tiny: SemanticCodec) -> None:
    encoded = torch.randn(1, 6, 24, requires_grad=True)
    quantizer = tiny.vector_quantizer
    upstream = torch.randn(1, 6, 24)
    (actual,) = torch.autograd.grad(quantizer.forward_with_losses(encoded).embedding, encoded, upstream)
    expected = upstream @ quantizer.out_project.weight[..., 0] @ quantizer.in_project.weight[..., 0]
    assert relative_l2(actual, expected.detach()) < 1e-5
