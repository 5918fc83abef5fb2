"""Copies of clips in other voices and moods, and their part in the training of s2mel."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from indextts2.config import ModelConfig
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.models.semantic.codec import SemanticCodec
from indextts2.models.speaker.campplus import CampPlus
from indextts2.training.augment import VoiceChange
from indextts2.training.codec import write_features
from indextts2.training.copies import (
    SHIFTS,
    Copies,
    write_aroused,
    write_revoiced,
    write_shifted,
)
from indextts2.training.data import AROUSED, REVOICED, SHIFTED, Corpus, copies
from indextts2.training.prosody import prosody
from indextts2.training.s2mel import Item, S2MelStage, S2MelStageConfig
from indextts2.training.semantic import Recogniser
from indextts2.training.speaker import SpeakerStage, SpeakerStageConfig
from tests.training.test_acoustic_stages import CAMPPLUS, S2MEL, make_stage

RATE = 22050


def shifted(corpus: Corpus, config: ModelConfig) -> Corpus:
    """Write the copies in other voices with fresh networks."""
    torch.manual_seed(0)
    recogniser = Recogniser(config, 0.0).eval()
    write_features(corpus, recogniser)
    codec, speaker = SemanticCodec(config.semantic_codec).eval(), CampPlus(CAMPPLUS).eval()
    write_shifted(corpus, recogniser, codec, speaker, UnifiedVoice(config.gpt).eval())
    return copies(corpus)[SHIFTED]


def test_no_copies_before_they_are_written(corpus: Corpus) -> None:
    assert copies(corpus) == {}


def test_every_trained_speaker_comes_back_as_another(corpus: Corpus, tiny_config: ModelConfig) -> None:
    copy = shifted(corpus, tiny_config)
    assert [clip.path for clip in copy.clips] == [corpus.clips[n].path for n in corpus.train]
    assert not set(copy.speakers) & set(corpus.speakers)
    assert len(copy.speakers) == len({corpus.clips[n].speaker for n in corpus.train})
    for number, clip in enumerate(copy.clips):
        factor = float(clip.speaker.rpartition("*")[2])
        assert SHIFTS[0] - 0.01 < abs(np.log(factor)) < SHIFTS[1] + 0.01
        before = corpus.clips[corpus.train[number]].length("mel")
        assert copy.get("mel", number).shape[0] == pytest.approx(before / factor, abs=1.5)
        assert copy.get("codes", number, like="fbank").shape == (clip.length("fbank"),)
        assert copy.get("latents", number, like="fbank").shape == (clip.length("fbank"), tiny_config.gpt.model_dim)
    assert np.load(copy.folder / "styles.npy").shape == (len(copy), CAMPPLUS.embedding_size)


def test_s2mel_prompts_a_copy_with_its_own_voice(corpus: Corpus, tiny_config: ModelConfig) -> None:
    copy = shifted(corpus, tiny_config)
    # Writes codes, latents and styles of the corpus.
    make_stage("s2mel", corpus, tiny_config)
    mood = Copies()
    mood.add(corpus.clips[0], corpus.clips[0].speaker, corpus.get("mel", 0), copy.get("codes", 0, like="fbank"))
    mood.save(corpus.folder / AROUSED, [copy.get("latents", 0, like="fbank")])
    config = dataclasses.replace(tiny_config, s2mel=S2MEL, campplus=CAMPPLUS)
    codec = SemanticCodec(tiny_config.semantic_codec)
    options = S2MelStageConfig(prompt_frames=(20, 50), evaluation_clips=1)
    assert len(S2MelStage(corpus, config, codec, options).items) == len(corpus.train) + 1
    stage = S2MelStage(corpus, config, codec, dataclasses.replace(options, copies=(SHIFTED, AROUSED)))
    assert len(stage.items) == len(corpus.train) + len(copy) + 1
    rng = np.random.default_rng(0)

    def origin(item: Item) -> tuple[Corpus, int]:
        head = stage.collate([item], 30, rng).prompt_mel[0, :20].numpy()
        found = [
            (source, n)
            for source in (corpus, copy)
            for n in range(len(source))
            if np.array_equal(source.get("mel", n)[:20].astype(np.float32), head)
        ]
        assert len(found) == 1
        return found[0]

    voice, number = origin(Item(1, 0))
    assert voice is not corpus
    assert voice.clips[number].speaker == copy.clips[0].speaker
    assert number != 0
    plain, number = origin(Item(2, 0))
    assert plain is corpus
    assert plain.clips[number].speaker == corpus.clips[0].speaker
    assert number != 0


def test_the_speaker_encoder_learns_other_voices(corpus: Corpus) -> None:
    spoken = Copies()
    for number in corpus.by_speaker["first"][:2]:
        samples = corpus.audio(number, 16000) / 2
        spoken.add(corpus.clips[number], "first*1.50", corpus.get("mel", number), np.zeros(40), samples)
    spoken.save(corpus.folder / REVOICED, [np.zeros((40, 16))] * 2)
    stage = SpeakerStage(corpus, CAMPPLUS, SpeakerStageConfig(crop_samples=8000))
    assert set(stage.clips) == {"first", "second", "first*1.50"}
    assert [clip for _, clip in stage.clips["first*1.50"]] == [0, 1]
    source, clip = stage.clips["first*1.50"][1]
    np.testing.assert_allclose(source.audio(clip, 16000), samples, atol=2e-4)
    assert stage.next_batch(np.random.default_rng(0)).shape[:2] == (2, 3)


def voice_like(seconds: float = 2.0) -> np.ndarray:
    """Harmonics of 140 Hz."""
    time = np.arange(int(seconds * RATE)) / RATE
    return (0.05 * sum(np.sin(2 * np.pi * 140 * k * time) / k for k in range(1, 30))).astype(np.float32)


@pytest.mark.parametrize("arousal", [-1.0, 0.5])
def test_arousal_moves_pitch_rate_and_level(arousal: float) -> None:
    pytest.importorskip("pyworld")
    pytest.importorskip("librosa")
    plain = VoiceChange().apply(voice_like(), RATE)
    moved = VoiceChange.of_arousal(arousal).apply(voice_like(), RATE)
    before, after = prosody(plain, RATE, 6), prosody(moved, RATE, 6)
    assert moved.dtype == np.float32
    assert before["pitch_hz"] == pytest.approx(140, rel=0.02)
    assert after["pitch_hz"] == pytest.approx(140 * 2 ** (3 * arousal / 12), rel=0.02)
    assert len(plain) / len(moved) == pytest.approx(np.exp(0.25 * arousal), rel=0.01)
    assert after["level_dbfs"] - before["level_dbfs"] == pytest.approx(4 * arousal, abs=1)


def test_formants_move_without_the_pitch() -> None:
    pytest.importorskip("pyworld")
    pytest.importorskip("librosa")
    bright = voice_like()
    spectrum = np.abs(np.fft.rfft(VoiceChange(formants=1.5).apply(bright, RATE)))
    plain = np.abs(np.fft.rfft(VoiceChange().apply(bright, RATE)))
    hz = np.arange(len(plain)) * RATE / len(bright)
    # The harmonics end at 30 * 140 Hz, with other formants at half as much more.
    beyond = (hz > 4500) & (hz < 6000)
    assert spectrum[beyond].sum() > 10 * plain[beyond].sum()
    moved = VoiceChange(pitch=1.5, formants=1.0).apply(bright, RATE)
    assert prosody(moved, RATE, 6)["pitch_hz"] == pytest.approx(210, rel=0.02)
    assert prosody(VoiceChange(formants=1.5).apply(bright, RATE), RATE, 6)["pitch_hz"] == pytest.approx(140, rel=0.02)


def test_copies_by_analysis_keep_text_and_timing(corpus: Corpus, tiny_config: ModelConfig) -> None:
    pytest.importorskip("pyworld")
    shifted(corpus, tiny_config)
    make_stage("s2mel", corpus, tiny_config)
    write_aroused(corpus, UnifiedVoice(tiny_config.gpt).eval())
    write_revoiced(corpus, CampPlus(CAMPPLUS).eval())
    by_path = {clip.path: clip for clip in corpus.clips}
    moods, voices = copies(corpus)[AROUSED], copies(corpus)[REVOICED]
    assert len(moods) + len(voices) == len(corpus.train)
    for copy in (moods, voices):
        for number, clip in enumerate(copy.clips):
            plain = by_path[clip.path]
            tempo = clip.length("fbank") / plain.length("fbank")
            assert copy.get("mel", number).shape[0] == pytest.approx(plain.length("mel") * tempo, rel=0.05)
            assert len(copy.get("latents", number, like="fbank")) == clip.length("fbank")
    assert {clip.speaker for clip in moods.clips} <= set(corpus.speakers)
    assert not {clip.speaker for clip in voices.clips} & set(corpus.speakers)
    assert len(np.load(voices.folder / "styles.npy")) == len(voices)
