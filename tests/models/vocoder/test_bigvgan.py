"""BigVGAN against the golden arrays, and its chunked synthesis against the whole."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from indextts2.config import BigVGANConfig, load_json, subset
from indextts2.errors import ConfigError, UsageError
from indextts2.models.vocoder.bigvgan import BigVGAN
from tests.conftest import golden_error
from tests.models.weights import assert_manifest_matches, load_strictly

TINY = BigVGANConfig(
    num_mels=5,
    hop_size=8,
    upsample_rates=(4, 2),
    upsample_kernel_sizes=(8, 4),
    upsample_initial_channel=8,
    resblock_kernel_sizes=(3, 5),
    resblock_dilation_sizes=((1, 2), (1, 3)),
    use_bias_at_final=False,
    use_tanh_at_final=False,
)


@pytest.fixture(scope="module")
def vocoder(small_checkpoint: Path) -> BigVGAN:
    folder = small_checkpoint / "hf_cache" / "bigvgan"
    model = BigVGAN(subset(BigVGANConfig, load_json(folder / "config.json"), "bigvgan"))
    state = torch.load(folder / "bigvgan_generator.pt", weights_only=True)["generator"]
    load_strictly(model, state)
    return model


def tiny(config: BigVGANConfig = TINY, seed: int = 0) -> BigVGAN:
    torch.manual_seed(seed)
    return BigVGAN(config).double().eval()


def test_parity(vocoder: BigVGAN, golden):
    layers = {
        "bv_conv_pre": vocoder.conv_pre,
        "bv_ups0": vocoder.ups[0][0],
        "bv_resblock0": vocoder.resblocks[0],
        "bv_ups_last": vocoder.ups[-1][0],
        "bv_conv_post": vocoder.conv_post,
    }
    seen: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, out.clone()))
        for name, layer in layers.items()
    ]
    with torch.inference_mode():
        wave = vocoder(torch.from_numpy(golden["mel"]))
    for hook in hooks:
        hook.remove()
    for name in layers:
        assert golden_error(seen[name].numpy(), golden[name]) < 1e-5, name
    assert golden_error(wave.numpy(), golden["wav"]) < 1e-5
    as_int16 = (32767 * wave).clamp(-32767, 32767).to(torch.int16)[0]
    # Truncation toward zero: rounding of the last bit may move a sample by one step.
    assert (as_int16.int() - torch.from_numpy(golden["wav_int16"]).int()).abs().max() <= 1


@pytest.mark.parametrize("size", ["small", "full"])
def test_keys(reference: Path, size: str):
    config = subset(BigVGANConfig, load_json(reference / "checkpoint_files" / f"bigvgan_{size}.json"), "bigvgan")
    manifest = json.loads((reference / f"manifest_{size}.json").read_text())
    with torch.device("meta"):
        model = BigVGAN(config)
    assert_manifest_matches(model, manifest["hf_cache/bigvgan/bigvgan_generator.pt"], "generator.")


def test_published_halo_is_38_frames(reference: Path):
    config = subset(BigVGANConfig, load_json(reference / "checkpoint_files" / "bigvgan_full.json"), "bigvgan")
    with torch.device("meta"):
        model = BigVGAN(config)
    assert model.halo_frames == 38
    assert model.receptive_field(0, 0) == (-38, 37)
    assert model.receptive_field(255, 255) == (-37, 38)


def test_receptive_field_is_what_gradients_touch():
    model, frames = tiny(), 60
    sample = 30 * TINY.hop_size + 3
    mel = torch.randn(1, TINY.num_mels, frames, dtype=torch.float64, requires_grad=True)
    model(mel)[0, 0, sample].backward()
    touched = mel.grad[0].abs().sum(0).nonzero().flatten()
    assert (touched.min().item(), touched.max().item()) == model.receptive_field(sample, sample)


@pytest.mark.parametrize("chunk_frames", [1, 7, 40, 200])
def test_chunks_equal_the_whole(chunk_frames: int):
    model = tiny()
    mel = torch.randn(2, TINY.num_mels, 90, dtype=torch.float64)
    with torch.inference_mode():
        whole, pieces = model(mel), list(model.chunks(mel, chunk_frames))
    assert all(piece.shape[-1] == chunk_frames * TINY.hop_size for piece in pieces[:-1])
    torch.testing.assert_close(torch.cat(pieces, -1), whole, rtol=0, atol=1e-13)


def test_chunks_equal_the_whole_in_the_published_layout(vocoder: BigVGAN, golden):
    mel = torch.from_numpy(golden["mel"])
    with torch.inference_mode():
        joined = torch.cat(list(vocoder.chunks(mel, 20)), -1)
    assert golden_error(joined.numpy(), golden["wav"]) < 1e-5


def test_half_the_halo_is_not_enough(monkeypatch: pytest.MonkeyPatch):
    model = tiny()
    mel = torch.randn(1, TINY.num_mels, 90, dtype=torch.float64)
    with torch.inference_mode():
        whole = model(mel)
        monkeypatch.setattr(BigVGAN, "halo_frames", model.halo_frames // 2)
        joined = torch.cat(list(model.chunks(mel, 20)), -1)
    assert (joined - whole).abs().max() > 1e-9


def test_chunk_frames_must_be_positive():
    with pytest.raises(UsageError, match="chunk_frames must be at least 1, not 0"):
        next(tiny().chunks(torch.zeros(1, TINY.num_mels, 4, dtype=torch.float64), 0))


def test_batch_equals_single():
    model = tiny()
    mel = torch.randn(3, TINY.num_mels, 6, dtype=torch.float64)
    with torch.inference_mode():
        torch.testing.assert_close(model(mel)[1:2], model(mel[1:2]), rtol=0, atol=1e-13)


def test_every_parameter_gets_a_gradient():
    model = tiny()
    model(torch.randn(2, TINY.num_mels, 6, dtype=torch.float64)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_training_and_inference_agree():
    model, mel = tiny(), torch.randn(1, TINY.num_mels, 6, dtype=torch.float64)
    with torch.inference_mode():
        expected = model(mel)
    torch.testing.assert_close(model(mel).detach(), expected, rtol=0, atol=0)


def test_final_switches():
    mel = 30 * torch.randn(1, TINY.num_mels, 6, dtype=torch.float64)
    clamped = tiny()
    with_tanh = tiny(dataclasses.replace(TINY, use_tanh_at_final=True))
    for model in (clamped, with_tanh):
        model.conv_post.weight.data *= 100
    assert clamped.conv_post.bias is None
    assert tiny(dataclasses.replace(TINY, use_bias_at_final=True)).conv_post.bias is not None
    raw = []
    clamped.conv_post.register_forward_hook(lambda _m, _i, out: raw.append(out.clone()))
    with torch.inference_mode():
        wave = clamped(mel)
        assert wave.abs().max() == 1
        torch.testing.assert_close(with_tanh(mel), raw[0].tanh())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"upsample_kernel_sizes": (7, 4)}, "does not lengthen exactly"),
        ({"resblock_kernel_sizes": (3, 4)}, "must be odd"),
        ({"upsample_initial_channel": 6}, "cannot be halved"),
        ({"upsample_kernel_sizes": (8,)}, "one length"),
        ({"resblock_kernel_sizes": (3,)}, "one length"),
    ],
)
def test_impossible_sizes_are_refused(change: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        BigVGAN(dataclasses.replace(TINY, **change))
