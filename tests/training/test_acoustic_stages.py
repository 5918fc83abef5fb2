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
    MelConfig,
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
from indextts2.training.losses import MultiResolutionSTFTLoss, MultiScaleMelLoss, hum_loss
from indextts2.training.pitch import PitchStage, PitchStageConfig, read_targets, track_pitch
from indextts2.training.pitch import make as make_pitch
from indextts2.training.runner import Stage, load_trained, run_stage
from indextts2.training.s2mel import Item, S2MelStage, S2MelStageConfig, join_frames, write_styles
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
SOURCE_VOCODER = dataclasses.replace(VOCODER, pitch_channels=4)
LEARNING_RATES = {"vocoder": 3e-3, "source": 3e-3, "pitch": 1e-2, "speaker": 1e-2, "s2mel": 1e-2}
STAGES = ("vocoder", "source", "pitch", "adversarial", "speaker", "s2mel")


def make_stage(name: str, corpus: Corpus, config: ModelConfig) -> Stage:
    torch.manual_seed(2)
    if name in ("vocoder", "adversarial", "source"):
        start = 3 if name == "adversarial" else 0
        options = VocoderStageConfig(crop_frames=16, batch_size=2, adversarial_after_steps=start, evaluation_clips=1)
        return VocoderStage(corpus, SOURCE_VOCODER if name == "source" else VOCODER, options)
    if name == "pitch":
        write_contours(corpus)
        return PitchStage(corpus, SOURCE_VOCODER, PitchStageConfig(crop_frames=30, batch_size=4))
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


def write_contours(corpus: Corpus) -> None:
    """Pitch of two speakers: 100 and 200 Hz, with every fourth frame unvoiced."""
    contours = []
    for clip in corpus.clips:
        hz = np.full(clip.length("mel"), 100.0 if clip.speaker == "first" else 200.0, np.float32)
        hz[::4] = 0
        contours.append(hz)
    np.savez(corpus.folder / "pitch.npz", clips=np.arange(len(corpus)), f0=np.concatenate(contours))


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


def test_the_source_follows_the_pitch_of_its_crop(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("source", corpus, tiny_config)
    assert isinstance(stage, VocoderStage)
    rng = np.random.default_rng(0)
    mel, wave, excitation = stage.next_batch(rng)
    assert excitation.shape == (2, 3, wave.shape[-1])
    assert mel.shape[-1] * VOCODER.hop_size == wave.shape[-1]
    # The noise is new each time, the harmonics are those of the crop's place in its surroundings.
    clip = stage.clips[0]
    piece, start = stage._piece(corpus.audio(clip), np.random.default_rng(1))
    mel, wave, excitation = stage._crop(clip, np.random.default_rng(1))
    around = stage.log_mel(torch.from_numpy(piece)[None])
    frames = slice(start, start + 16)
    assert torch.equal(mel, around[..., frames])
    assert torch.equal(wave[0], torch.from_numpy(piece[start * 256 : (start + 16) * 256]))
    torch.testing.assert_close(excitation[:, :2], stage.model.source(around, start, start + 16)[:, :2])
    assert not torch.equal(excitation[:, 2], stage.model.source(around, start, start + 16)[:, 2])
    # The estimator has a stage of its own and stays as it is.
    assert not any(p.requires_grad for p in stage.model.source.parameters())
    trained = [p for group in stage.parameter_groups() for p in group["params"]]
    assert all(p.requires_grad for p in trained)
    assert len(trained) == len(stage.parameters())


def test_crops_are_pieces_of_clips_or_of_other_speakers(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("vocoder", corpus, tiny_config)
    assert isinstance(stage, VocoderStage)
    audio = corpus.audio(stage.clips[-1])
    for seed in range(40):
        stage.config = dataclasses.replace(stage.config, varied=float(seed % 2))
        piece, start = stage._piece(audio, np.random.default_rng(seed))
        assert piece.dtype == np.float32
        assert 0 <= start * 256 <= len(piece) - 16 * 256
        is_part = any(np.array_equal(piece, audio[i : i + len(piece)]) for i in np.flatnonzero(audio == piece[0]))
        assert is_part == (seed % 2 == 0)
    # A clip that hardly holds a crop gives one whatever the factor.
    for seed in range(20):
        piece, start = stage._piece(audio[: 18 * 256], np.random.default_rng(seed))
        assert start + 16 <= len(piece) // 256


def test_targets_carry_the_pitch_over_gaps(corpus: Corpus) -> None:
    write_contours(corpus)
    contour = read_targets(corpus)[0]
    assert contour.hz.min() == pytest.approx(100)
    assert contour.hz.max() == pytest.approx(100)
    assert not contour.voiced[::4].any()
    assert contour.voiced[1::4].all()
    np.savez(corpus.folder / "pitch.npz", clips=np.arange(2), f0=np.ones(3, np.float32))
    with pytest.raises(ConfigError, match="another corpus"):
        read_targets(corpus)


def test_the_tracker_finds_the_pitch_of_a_frame() -> None:
    """A tone that jumps by a fifth in the middle, between silences."""
    pytest.importorskip("librosa")
    hop = MelConfig().hop_length
    time = np.arange(40 * hop) / MelConfig().sample_rate
    hz = np.where(time < time[20 * hop], 150.0, 225.0)
    phase = 2 * np.pi * np.cumsum(hz) / MelConfig().sample_rate
    tone = sum(np.sin(k * phase) / k for k in range(1, 8))
    silence = np.zeros(10 * hop)
    found = track_pitch(np.concatenate((silence, tone, silence)).astype(np.float32), 60, MelConfig())
    assert found.shape == (60,)
    assert not found[:7].any()
    assert found[14:28] == pytest.approx(np.full(14, 150.0), rel=0.02)
    assert found[33:46] == pytest.approx(np.full(13, 225.0), rel=0.02)


def test_hum_is_what_repeats_with_the_frames() -> None:
    torch.manual_seed(0)
    noise = torch.randn(4, 64 * 256)
    clicks = torch.zeros(4, 64 * 256)
    clicks[:, 100::256] = 1.0
    flipped = clicks * torch.randn(4, 64 * 256).sign()
    pulses = torch.zeros(4, 64 * 256)
    pulses[:, ::7] = 1.0
    assert hum_loss(noise, 256) < 0.05
    assert hum_loss(pulses, 256) < 0.2
    # Clicks of either sign do not repeat as a wave, but their energy does.
    assert hum_loss(clicks, 256) > hum_loss(flipped, 256) > 10
    assert hum_loss(torch.zeros(1, 512), 256).isfinite()


def test_latents_add_nothing_before_training(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("s2mel", corpus, tiny_config)
    assert isinstance(stage, S2MelStage)
    batch = stage.next_batch(np.random.default_rng(0))
    assert torch.equal(stage.content(batch, None), batch.content)


def test_prompt_is_another_clip_of_the_speaker(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("s2mel", corpus, tiny_config)
    assert isinstance(stage, S2MelStage)
    target = corpus.train[0]
    batch = stage.collate([Item(0, target)], 40, np.random.default_rng(0))
    assert batch.prompt_mel.shape[1] == 40
    heads = {i: corpus.get("mel", i)[:20].astype(np.float32) for i in range(len(corpus))}
    found = [i for i, head in heads.items() if np.array_equal(head, batch.prompt_mel[0, :20].numpy())]
    assert len(found) == 1
    assert found[0] != target
    assert corpus.clips[found[0]].speaker == corpus.clips[target].speaker


def test_prompt_and_target_are_coloured_alike(corpus: Corpus, tiny_config: ModelConfig) -> None:
    stage = make_stage("s2mel", corpus, tiny_config)
    assert isinstance(stage, S2MelStage)
    stage.config = dataclasses.replace(stage.config, colour=0.4)
    batch = stage.next_batch(np.random.default_rng(0))
    assert batch.colour.shape == (len(batch.frames), 80)
    assert float(batch.colour.std()) > 0.1
    plain = stage.collate(stage.items[:1], 40, np.random.default_rng(0))
    assert not plain.colour.any()


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
    assert stage_changes(["batch_size=3", "name=other"]) == {"batch_size": 3, "name": "other"}
    with pytest.raises(ConfigError, match="train that stage first"):
        make_vocoder(work)
    write_contours(Corpus(work / "data"))
    pitch, run = make_pitch(work, {"batch_size": 2, "crop_frames": 30})
    run_stage(pitch, dataclasses.replace(run, steps=1))
    stage, _ = make_vocoder(work, {"batch_size": 3, "crop_frames": 8})
    assert torch.equal(stage.model.source.estimator.head.bias, load_trained(work / "pitch")["head.bias"])
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
