"""The whole pipeline on the small name-derived model: results, and every option reaching its effect."""

from __future__ import annotations

import dataclasses
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from indextts2 import EmotionAudio, EmotionVector, IndexTTS2, InferenceConfig, Voice, Waveform
from indextts2.checkpoints.layout import load_model_config
from indextts2.errors import AudioError, Cancelled, CheckpointError, ConfigError, TextError, UsageError
from indextts2.inference.progress import Progress
from tests.conftest import relative_l2
from tests.inference.conftest import TEXT, options


def test_a_result_holds_what_it_promises(tts: IndexTTS2, speaker: Path, tmp_path: Path) -> None:
    result = tts.infer(TEXT, speaker, config=options())
    assert result.sample_rate == 22050
    assert result.mel_codes.shape == (16,)
    assert result.mel.shape == (80, int(np.float32(16) * np.float32(1.72)))
    assert result.samples.shape == (result.mel.shape[1] * 256,)
    assert result.samples.dtype == np.float32
    assert np.isfinite(result.samples).all()
    assert 0 < np.abs(result.samples).max() <= 1
    assert result.duration == pytest.approx(len(result.samples) / 22050)
    (segment,) = result.segments
    assert segment.text == "HELLO WORLD, THIS IS A TEST."
    assert (segment.start, segment.end, segment.hit_limit) == (0.0, result.duration, True)
    assert {"text", "gpt", "flow", "vocoder", "total"} <= set(result.timings)
    assert result.rtf == pytest.approx(result.timings["total"] / result.duration)
    saved = soundfile.read(result.save(tmp_path / "out" / "speech.wav"), dtype="int16")[0]
    assert np.abs(saved - result.samples * 32767).max() <= 1


def test_the_seed_decides(tts: IndexTTS2, speaker: Path) -> None:
    first, again, other = (tts.infer(TEXT, speaker, config=options(seed=s)) for s in (1, 1, 2))
    assert np.array_equal(first.samples, again.samples)
    assert not np.array_equal(first.mel_codes, other.mel_codes)


def test_a_drawn_seed_is_reported_and_repeats_the_run(tts: IndexTTS2, speaker: Path) -> None:
    config = dataclasses.replace(options(), seed=None)
    first = tts.infer(TEXT, speaker, config=config)
    again = tts.infer(TEXT, speaker, config=dataclasses.replace(config, seed=first.seed))
    assert np.array_equal(first.samples, again.samples)


def codes(tts: IndexTTS2, speaker: Path, **changes: object) -> list[int]:
    return tts.infer(TEXT, speaker, config=options(**changes)).mel_codes.tolist()


def test_top_k_1_leaves_no_choice(tts: IndexTTS2, speaker: Path) -> None:
    assert codes(tts, speaker, seed=1, top_k=1) == codes(tts, speaker, seed=2, top_k=1)
    assert codes(tts, speaker, seed=1, top_k=1) == codes(tts, speaker, seed=3, do_sample=False)


@pytest.mark.parametrize(
    "change",
    [
        {"temperature": 3.0},
        {"top_k": 2},
        {"top_p": 0.05},
        {"num_beams": 3},
        {"repetition_penalty": 1.0, "do_sample": False, "max_mel_tokens": 40},
        {"typical_sampling": True, "typical_mass": 0.1},
        {"min_p": 0.9},
        {"max_mel_tokens": 10},
    ],
    ids=lambda change: next(iter(change)),
)
def test_generation_options_change_the_codes(tts: IndexTTS2, speaker: Path, change: dict[str, object]) -> None:
    base = {name: value for name, value in change.items() if name in ("do_sample", "max_mel_tokens")}
    if "max_mel_tokens" in change and len(change) == 1:
        base = {}
    assert codes(tts, speaker, **change) != codes(tts, speaker, **base)


@pytest.mark.parametrize("change", [{"steps": 3}, {"cfg_rate": 0.0}, {"flow_temperature": 0.5}])
def test_flow_options_change_the_mel_but_not_the_codes(tts: IndexTTS2, speaker: Path, change: dict[str, float]) -> None:
    plain, changed = tts.infer(TEXT, speaker, config=options()), tts.infer(TEXT, speaker, config=options(**change))
    assert np.array_equal(plain.mel_codes, changed.mel_codes)
    assert plain.mel.shape == changed.mel.shape
    assert relative_l2(changed.mel, plain.mel) > 1e-3


def test_duration_factor_scales_the_frames(tts: IndexTTS2, speaker: Path) -> None:
    plain = tts.infer(TEXT, speaker, config=options())
    slow = tts.infer(TEXT, speaker, config=options(duration_factor=2.0))
    assert np.array_equal(plain.mel_codes, slow.mel_codes)
    assert slow.mel.shape[1] == int(np.float32(16) * np.float32(1.72) * 2)


def test_target_seconds_is_met(tts: IndexTTS2, speaker: Path) -> None:
    config = options(target_seconds=1.0, max_text_tokens_per_segment=6)
    result = tts.infer("One is here. Two is here.", speaker, config=config)
    assert len(result.segments) > 1
    assert result.duration == pytest.approx(1.0, abs=len(result.segments) * 256 / 22050)
    with pytest.raises(UsageError, match="half to twice"):
        tts.infer(TEXT, speaker, config=options(target_seconds=30.0))


def test_segments_and_the_silence_between_them(tts: IndexTTS2, speaker: Path) -> None:
    text = "This is one sentence. This is another one. And here is a third."
    heard: list[np.ndarray] = []
    config = options(max_text_tokens_per_segment=8, interval_silence_ms=100)
    result = tts.infer(text, speaker, config=config, on_samples=heard.append)
    assert len(result.segments) >= 3
    assert np.array_equal(np.concatenate(heard), result.samples)
    silence = int(22050 * 0.1)
    for before, after in zip(result.segments, result.segments[1:], strict=False):
        assert round((after.start - before.end) * 22050) == silence
        gap = result.samples[round(before.end * 22050) : round(after.start * 22050)]
        assert not gap.any()
    assert result.segments[-1].end == result.duration
    whole = tts.infer(text, speaker, config=options(max_text_tokens_per_segment=8, interval_silence_ms=0))
    assert len(whole.samples) == len(result.samples) - silence * (len(result.segments) - 1)


def test_more_text_tokens_than_the_model_holds_are_refused(tts: IndexTTS2) -> None:
    with pytest.raises(UsageError, match="599"):
        tts.text_segments(TEXT, options(max_text_tokens_per_segment=600))


def test_quick_streaming_tokens_make_the_first_segment_short(tts: IndexTTS2) -> None:
    text = "This is one sentence. This is another one. And here is a third. And a fourth one too."
    plain = tts.text_segments(text, options())
    quick = tts.text_segments(text, options(quick_streaming_tokens=1000, max_text_tokens_per_segment=30))
    assert len(plain) == 1
    assert len(quick) > 1


# --- voices ---


def test_a_voice_file_speaks_as_its_audio(tts: IndexTTS2, speaker: Path, tmp_path: Path) -> None:
    voice = tts.voice(speaker, name="somebody")
    path = voice.save(tmp_path / "somebody.safetensors")
    loaded = Voice.load(path)
    assert (loaded.name, loaded.model, loaded.source) == ("somebody", tts.models.fingerprint, voice.source)
    direct = tts.infer(TEXT, speaker, config=options())
    for kind in (voice, loaded, path, str(path)):
        assert np.array_equal(tts.infer(TEXT, kind, config=options()).samples, direct.samples)


def test_a_voice_of_another_model_is_refused(tts: IndexTTS2, speaker: Path, tmp_path: Path) -> None:
    voice = dataclasses.replace(tts.voice(speaker), model="0" * 32)
    with pytest.raises(CheckpointError, match="made with model 000000000000"):
        tts.infer(TEXT, voice, config=options())
    path = tmp_path / "not-a-voice.safetensors"
    path.write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="cannot read the voice file"):
        tts.voice(path)
    with pytest.raises(CheckpointError, match="cannot read the voice file"):
        tts.voice(tmp_path / "absent.safetensors")


def test_voices_are_cached_by_content(
    tts: IndexTTS2, speaker: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from indextts2.inference import stages

    calls: list[int] = []
    encode = stages.encode_voice
    monkeypatch.setattr(stages, "encode_voice", lambda *a, **k: (calls.append(1), encode(*a, **k))[1])
    tts.clear_caches()
    copy = tmp_path / "the same audio.wav"
    copy.write_bytes(speaker.read_bytes())
    assert tts.voice(speaker) is tts.voice(copy)
    assert len(calls) == 1
    samples, rate = soundfile.read(speaker, dtype="float32", always_2d=True)
    louder = Waveform((samples.mean(axis=1) * 0.5).astype(np.float32), rate)
    tts.voice(louder)
    assert len(calls) == 2


def test_reference_audio_that_is_too_short_is_refused(tts: IndexTTS2) -> None:
    noise = np.random.default_rng(0).standard_normal(6000).astype(np.float32) * 0.1
    with pytest.raises(AudioError, match="at least 1 s"):
        tts.infer(TEXT, Waveform(noise, 22050), config=options())


# --- emotion ---


def test_alpha_goes_from_the_speakers_own_emotion_to_the_recordings(
    tts: IndexTTS2, speaker: Path, emotion_audio: Path
) -> None:
    voice = tts.voice(speaker)
    other = tts.voice(emotion_audio).audio_emotion
    vectors = {a: tts.emotion_vector(voice, EmotionAudio(emotion_audio, a), TEXT) for a in (0.0, 0.5, 1.0)}
    assert torch.equal(vectors[0.0], voice.own_emotion)
    assert relative_l2(vectors[1.0], other) < 1e-6
    assert relative_l2(vectors[0.5], (voice.own_emotion + other) / 2) < 1e-6
    assert torch.equal(tts.emotion_vector(voice, emotion_audio, TEXT), vectors[1.0])
    assert relative_l2(tts.emotion_vector(voice, None, TEXT), voice.audio_emotion) < 1e-6


def test_weights_blend_rows_of_the_matrix(tts: IndexTTS2, speaker: Path) -> None:
    voice = tts.voice(speaker)
    plain = tts.emotion_vector(voice, None, TEXT)
    named = tts.emotion_vector(voice, "happy:0.7,sad:0.2", TEXT)
    listed = tts.emotion_vector(voice, [0.7, 0, 0.2, 0, 0, 0, 0, 0], TEXT)
    assert torch.equal(named, listed)
    assert relative_l2(named, plain) > 0.1
    assert torch.equal(tts.emotion_vector(voice, [0.0] * 8, TEXT), plain)
    scaled = tts.emotion_vector(voice, EmotionVector((1.0, 0, 0, 0, 0, 0, 0, 0), alpha=0.5), TEXT)
    assert torch.equal(scaled, tts.emotion_vector(voice, "happy:0.5", TEXT))
    draws = {
        tuple(
            tts.emotion_vector(voice, EmotionVector((0, 1.0, 0, 0, 0, 0, 0, 0), random_rows=True), TEXT, seed=s)[
                0
            ].tolist()
        )
        for s in range(6)
    }
    assert len(draws) > 1


def test_emotion_changes_the_speech(tts: IndexTTS2, speaker: Path, emotion_audio: Path) -> None:
    plain = tts.infer(TEXT, speaker, config=options()).mel_codes
    assert not np.array_equal(plain, tts.infer(TEXT, speaker, "angry:0.9", options()).mel_codes)
    with_audio = tts.infer_with_emotion(TEXT, speaker, emotion_audio, 1.0, options())
    assert not np.array_equal(plain, with_audio.mel_codes)


@pytest.mark.parametrize("emotion", ["joyful:1", "happy:high", [1.0] * 7, [float("nan")] * 8, 3.5])
def test_a_wrong_emotion_is_a_usage_error(tts: IndexTTS2, speaker: Path, emotion: object) -> None:
    with pytest.raises(UsageError):
        tts.infer(TEXT, speaker, emotion, options())  # type: ignore[arg-type]


# --- running ---


def test_two_threads_do_not_disturb_each_other(tts: IndexTTS2, speaker: Path, emotion_audio: Path) -> None:
    jobs = [(speaker, options(seed=3)), (emotion_audio, options(seed=4, num_beams=2))]
    alone = [tts.infer(TEXT, audio, config=config).samples for audio, config in jobs]
    tts.clear_caches()
    together: list[np.ndarray | None] = [None] * len(jobs)

    def work(index: int) -> None:
        together[index] = tts.infer(TEXT, jobs[index][0], config=jobs[index][1]).samples

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for expected, found in zip(alone, together, strict=True):
        assert found is not None
        assert relative_l2(found, expected) < 1e-5


def test_progress_is_reported_and_cancellation_is_prompt(tts: IndexTTS2, speaker: Path) -> None:
    seen: list[Progress] = []
    tts.infer(TEXT, speaker, config=options(), on_progress=seen.append)
    assert [p.done for p in seen if p.stage == "gpt"] == list(range(1, 17))
    assert [p.done for p in seen if p.stage == "flow"] == [1, 2]
    for stop_at in (("gpt", 3), ("flow", 1)):
        late: list[Progress] = []
        with pytest.raises(Cancelled):
            tts.infer(
                TEXT,
                speaker,
                config=options(),
                on_progress=late.append,
                cancel=lambda: bool(late) and (late[-1].stage, late[-1].done) == stop_at,  # noqa: B023
            )
        assert (late[-1].stage, late[-1].done) == stop_at


def test_text_without_speech_is_a_text_error(tts: IndexTTS2, speaker: Path) -> None:
    for text in ("", "   ", "...", "😀"):
        with pytest.raises(TextError):
            tts.infer(text, speaker, config=options())


def test_weights_must_fit_the_configuration(small_checkpoint: Path) -> None:
    config = load_model_config(small_checkpoint)
    tts = IndexTTS2(config)
    with pytest.raises(CheckpointError, match="load_weights"):
        tts.infer(TEXT, "voice.wav")
    assert tts.load_weights(small_checkpoint, device="cpu") is tts
    assert tts.models.gpt.config.layers == config.gpt.layers
    other = IndexTTS2(dataclasses.replace(config, gpt=dataclasses.replace(config.gpt, layers=5)))
    with pytest.raises(ConfigError, match="made for gpt"):
        other.load_weights(small_checkpoint, device="cpu")
    assert IndexTTS2.with_config(small_checkpoint / "config.yaml").config.gpt == config.gpt
    with tts:
        pass
    with pytest.raises(CheckpointError, match="no weights"):
        _ = tts.models


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"cfg_rate": -1.0},
        {"duration_factor": 3.0},
        {"seed": -1},
        {"max_text_tokens_per_segment": 1},
        {"interval_silence_ms": -1},
        {"target_seconds": 0.0},
    ],
)
def test_options_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        InferenceConfig(**changes)  # type: ignore[arg-type]
