"""Stages vocoder, speaker and s2mel on tiny networks, their losses and augmentations."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts2.config import (
    BigVGANConfig,
    CampPlusConfig,
    DiTConfig,
    LengthRegulatorConfig,
    ModelConfig,
    S2MelConfig,
    WaveNetConfig,
)
from indextts2.errors import ConfigError, UsageError
from indextts2.models.semantic.codec import SemanticCodec
from indextts2.models.speaker.campplus import CampPlus
from indextts2.models.vocoder.bigvgan import BigVGAN
from indextts2.training.augment import add_noise, change_colour, change_level, shift_speaker
from indextts2.training.command import stage_changes
from indextts2.training.data import Corpus
from indextts2.training.losses import MultiResolutionSTFTLoss, MultiScaleMelLoss
from indextts2.training.runner import Stage, load_trained, run_stage
from indextts2.training.s2mel import S2MelStage, S2MelStageConfig, join_frames, write_styles
from indextts2.training.speaker import (
    SpeakerStage,
    SpeakerStageConfig,
    contrast_loss,
    equal_error_rate,
)
from indextts2.training.vocoder import VocoderStage, VocoderStageConfig
from indextts2.training.vocoder import make as make_vocoder
from tests.training.test_stages import logged, run_config, stop_after

VOCODER = BigVGANConfig(
    upsample_rates=(16, 16), upsample_kernel_sizes=(32, 32), upsample_initial_channel=16, resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),), use_bias_at_final=False, use_tanh_at_final=False,
)  # fmt: skip
CAMPPLUS = CampPlusConfig(
    embedding_size=8, head_channels=2, initial_channels=8, growth_rate=4, bottleneck_channels=4, block_layers=(1, 1, 1)
)
S2MEL = S2MelConfig(
    style_dim=8, length_regulator=LengthRegulatorConfig(channels=16, in_channels=16),
    dit=DiTConfig(hidden_dim=16, num_heads=2, depth=3, content_dim=16),
    wavenet=WaveNetConfig(hidden_dim=16, num_layers=2),
    latent_projection=(4,), steps=2,
)  # fmt: skip
LEARNING_RATES = {"vocoder": 3e-3, "speaker": 1e-2, "s2mel": 1e-2}
STAGES = ("vocoder", "adversarial", "speaker", "s2mel")


def make_stage(name: str, corpus: Corpus, config: ModelConfig) -> Stage:
    torch.manual_seed(2)
    if name in ("vocoder", "adversarial"):
        start = 3 if name == "adversarial" else 0
        options = VocoderStageConfig(crop_frames=16, batch_size=2, adversarial_after_steps=start, evaluation_clips=1)
        return VocoderStage(corpus, VOCODER, options)
    if name == "speaker":
        make_speakers_differ(corpus)
        return SpeakerStage(corpus, CAMPPLUS, SpeakerStageConfig(crop_samples=8000))
    rng = np.random.default_rng(3)
    rows = len(corpus.array("fbank"))
    np.save(corpus.folder / "codes.npy", rng.integers(0, 16, rows).astype(np.int16))
    np.save(corpus.folder / "latents.npy", rng.normal(size=(rows, 16)).astype(np.float16))
    write_styles(corpus, CampPlus(CAMPPLUS).eval())
    options = S2MelStageConfig(frames_per_batch=600, prompt_frames=(20, 50), long_prompt_frames=150, evaluation_clips=1)
    model_config = dataclasses.replace(config, s2mel=S2MEL, campplus=CAMPPLUS)
    return S2MelStage(corpus, model_config, SemanticCodec(config.semantic_codec), options)


def make_speakers_differ(corpus: Corpus) -> None:
    """Take the treble from the noise of one speaker, and hold out everybody: two speakers are evaluated."""
    if corpus.held_out == list(range(len(corpus))):
        return
    audio = corpus.array("audio_16k").copy()
    for number in corpus.by_speaker["first"]:
        start, end = corpus.clips[number].spans["audio_16k"]
        audio[start:end] = np.convolve(audio[start:end], np.full(8, 0.3))[: end - start]
    corpus._arrays["audio_16k"] = audio
    corpus.held_out = list(range(len(corpus)))


@pytest.mark.parametrize("name", LEARNING_RATES)
def test_loss_falls(name: str, corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path) -> None:
    run = run_config(tmp_path / "run", steps=60, clip_norm=10.0, learning_rate=LEARNING_RATES[name])
    stage = make_stage(name, corpus, tiny_config)
    if isinstance(stage, S2MelStage):
        # The mean mel is all that there is to learn of noise; take it away.
        stage.model.start_from_mean(torch.zeros(80))
    figures = run_stage(stage, run)
    losses = logged(tmp_path / "run")
    assert np.mean(losses[-5:]) < 0.95 * np.mean(losses[:5])
    assert figures
    assert all(np.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("name", STAGES)
def test_resumed_run_equals_an_uninterrupted_one(
    name: str, corpus: Corpus, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    run_stage(make_stage(name, corpus, tiny_config), run_config(tmp_path / "whole", steps=6))
    cut = make_stage(name, corpus, tiny_config)
    stop_after(cut, 4)
    assert run_stage(cut, run_config(tmp_path / "parts", steps=6)) == {}
    run_stage(make_stage(name, corpus, tiny_config), run_config(tmp_path / "parts", steps=6))
    assert logged(tmp_path / "parts") == logged(tmp_path / "whole")
    first, second = load_trained(tmp_path / "whole"), load_trained(tmp_path / "parts")
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_adversary_joins_after_its_step(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("adversarial", corpus, tiny_config)
    assert isinstance(stage, VocoderStage)
    assert stage.discriminators is not None
    batch = stage.next_batch(np.random.default_rng(0))
    before = [p.clone() for p in stage.discriminators.parameters()]
    assert "generator" not in stage.losses(batch, 2)
    assert all(torch.equal(a, b) for a, b in zip(before, stage.discriminators.parameters(), strict=True))
    losses = stage.losses(batch, 3)
    assert {"discriminator", "generator", "features"} < set(losses)
    assert not all(torch.equal(a, b) for a, b in zip(before, stage.discriminators.parameters(), strict=True))
    losses["loss"].backward()
    # The generator's loss must not leave gradients in the discriminators.
    assert all(p.grad is None or not p.grad.isnan().any() for p in stage.model.parameters())


def test_latents_add_nothing_before_training(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("s2mel", corpus, tiny_config)
    assert isinstance(stage, S2MelStage)
    batch = stage.next_batch(np.random.default_rng(0))
    assert torch.equal(stage.content(batch, None), batch.content)


def test_prompt_is_another_clip_of_the_speaker(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("s2mel", corpus, tiny_config)
    assert isinstance(stage, S2MelStage)
    target = corpus.train[0]
    batch = stage.collate([target], 40, np.random.default_rng(0))
    assert batch.prompt_mel.shape[1] == 40
    heads = {i: corpus.get("mel", i)[:20].astype(np.float32) for i in range(len(corpus))}
    found = [i for i, head in heads.items() if np.array_equal(head, batch.prompt_mel[0, :20].numpy())]
    assert len(found) == 1
    assert found[0] != target
    assert corpus.clips[found[0]].speaker == corpus.clips[target].speaker


def test_join_frames_closes_the_gap_behind_short_prompts() -> None:
    first, second = torch.tensor([[[1.0], [2.0]], [[3.0], [0.0]]]), torch.tensor([[[5.0], [0.0]], [[6.0], [7.0]]])
    joined = join_frames(first, torch.tensor([2, 1]), second, torch.tensor([1, 2]))
    assert joined[..., 0].tolist() == [[1, 2, 5], [3, 6, 7]]


@pytest.mark.parametrize("loss", [MultiResolutionSTFTLoss(), MultiScaleMelLoss(22050)])
def test_spectral_losses_are_zero_for_equal_signals_and_grow_with_the_error(loss: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(1)
    wave = torch.randn((2, 4096), generator=generator) * 0.1
    noise = torch.randn((2, 4096), generator=generator) * 0.1
    assert float(loss(wave, wave)) == 0
    distances = [float(loss(wave + share * noise, wave)) for share in (0.01, 0.1, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_spectral_losses_have_finite_gradients_on_silence() -> None:
    silence = torch.zeros(1, 4096, requires_grad=True)
    (
        MultiResolutionSTFTLoss()(silence, torch.randn(1, 4096)) + MultiScaleMelLoss(22050)(silence, silence + 1)
    ).backward()
    assert silence.grad is not None
    assert silence.grad.isfinite().all()


def test_contrast_is_lowest_where_every_crop_finds_its_partner() -> None:
    cosines = 10 * torch.eye(4)
    assert float(contrast_loss(cosines)) < 0.01
    assert float(contrast_loss(cosines.roll(1, 0))) > 9


def test_equal_error_rate() -> None:
    assert equal_error_rate(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == 0
    assert equal_error_rate(np.array([0.1, 0.9]), np.array([0.2, 0.8])) == 0.5


def test_resampling_moves_the_pitch_by_the_factor() -> None:
    time = np.arange(16000) / 16000
    tone = np.sin(2 * np.pi * 500 * time).astype(np.float32)
    higher = shift_speaker(tone, 1.1, 16000)
    assert abs(len(higher) - 16000 / 1.1) < 4
    spectrum = np.abs(np.fft.rfft(higher * np.hanning(len(higher))))
    assert abs(np.argmax(spectrum) * 16000 / len(higher) - 550) < 3


def test_noise_has_the_ratio_that_was_asked_for() -> None:
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 0.1, 16000).astype(np.float32)
    noise = add_noise(samples, rng, (20.0, 20.0)) - samples
    assert 10 * np.log10(np.mean(samples**2) / np.mean(noise**2)) == pytest.approx(20, abs=0.1)
    for changed in (change_level(samples, rng), change_colour(samples, rng)):
        assert changed.shape == samples.shape
        assert changed.dtype == np.float32


def test_fields_of_a_stage_are_set_by_name(work: Path) -> None:
    assert stage_changes(["batch_size=3", "mel_kind=other"]) == {"batch_size": 3, "mel_kind": "other"}
    stage, _ = make_vocoder(work, {"batch_size": 3, "crop_frames": 8})
    assert stage.next_batch(np.random.default_rng(0))[0].shape == (3, 80, 8)
    with pytest.raises(ConfigError, match=r"unknown key stage\.batches"):
        make_vocoder(work, {"batches": 3})
    with pytest.raises(UsageError, match="NAME=VALUE"):
        stage_changes(["batch_size"])


def test_steps_of_the_vocoder_grow_with_its_weights(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("vocoder", corpus, tiny_config)
    groups = stage.parameter_groups()
    assert sum(len(group["params"]) for group in groups) == len(list(stage.model.parameters()))
    scale_of = {id(p): group["scale"] for group in groups for p in group["params"]}
    model = stage.model
    assert isinstance(model, BigVGAN)
    assert scale_of[id(model.conv_post.weight)] > 2 * scale_of[id(model.conv_pre.weight)]
