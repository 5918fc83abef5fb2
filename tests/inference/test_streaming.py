"""Streams: the exact mode is `infer` in pieces, the low-latency mode is close to it; threads, memory, cancellation."""

from __future__ import annotations

import dataclasses
import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig, Voice
from indextts2.errors import Cancelled, ConfigError, GenerationError, TextError, UsageError
from indextts2.inference.chunk_queue import ChunkQueue
from indextts2.inference.low_latency import ChunkPlan, FrameNoise, VocoderStream
from indextts2.inference.progress import Progress
from indextts2.inference.streaming import MODES, Mode, StreamingSynthesizer
from indextts2.types import AudioChunk
from tests.conftest import relative_l2
from tests.inference.conftest import options
from tests.tiny import tiny_model_config, write_tiny_model

TEXT = "This is one sentence. And this is another one, which is longer."
SENTENCES = ["This is one sentence.", "And this is another one, which is longer."]
PLAN = ChunkPlan(first_frames=8, growth=1.5, max_frames=20, context_frames=6, look_ahead_frames=10)


def config(seed: int = 1, max_mel_tokens: int = 40, **changes: object) -> InferenceConfig:
    """Segments of one sentence, 40 codes each at most."""
    names = ("num_beams", "min_new_tokens")
    given = {"num_beams": 1} | {name: changes.pop(name) for name in names if name in changes}
    generation = GenerationConfig(max_mel_tokens=max_mel_tokens, repetition_penalty=1.0, **given)
    return InferenceConfig(
        generation=generation, seed=seed, **{"max_text_tokens_per_segment": 24, "interval_silence_ms": 50} | changes
    )


def joined(chunks: Iterator[AudioChunk] | list[AudioChunk]) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


# --- exact ---


@pytest.mark.parametrize("changes", [{}, {"num_beams": 2}, {"target_seconds": 2.0}, {"duration_factor": 1.3}])
def test_exact_chunks_joined_are_the_whole_file(tiny_tts: IndexTTS2, tiny_voice: Voice, changes: dict) -> None:
    whole = tiny_tts.infer(TEXT, tiny_voice, config=config(**changes))
    chunks = list(tiny_tts.stream(TEXT, tiny_voice, config=config(**changes)))
    assert len(chunks) == len(whole.segments) > 1
    assert np.array_equal(joined(chunks), whole.samples)
    assert [c.index for c in chunks] == list(range(len(chunks)))
    assert [c.text for c in chunks] == [s.text for s in whole.segments]
    assert [c.is_final for c in chunks] == [False] * (len(chunks) - 1) + [True]


def test_exact_chunks_of_the_small_official_model(tts: IndexTTS2, speaker: Path) -> None:
    text, changes = "One is here. Two is here.", {"max_text_tokens_per_segment": 6, "num_beams": 2}
    whole = tts.infer(text, speaker, config=options(**changes))
    assert np.array_equal(joined(tts.stream(text, speaker, config=options(**changes))), whole.samples)


def test_a_stream_tells_its_seed_counts_and_times(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    stream = tiny_tts.stream(TEXT, tiny_voice, config=dataclasses.replace(config(), seed=None))
    chunks = list(stream)
    again = tiny_tts.stream(TEXT, tiny_voice, config=config(seed=stream.seed))
    assert np.array_equal(joined(chunks), joined(again))
    assert stream.run.codes == again.run.codes > 0
    assert stream.run.text_tokens == sum(len(s.ids) for s in tiny_tts.text_segments(TEXT, config()))
    assert 0 < stream.timings["first_audio"] < stream.timings["total"]
    assert stream.sample_rate == chunks[0].sample_rate == 22050


# --- a text that arrives ---


@pytest.mark.parametrize("mode", MODES)
def test_a_text_that_arrives_is_spoken_sentence_by_sentence(tiny_tts: IndexTTS2, tiny_voice: Voice, mode: Mode) -> None:
    given: list[str] = []

    def arriving() -> Iterator[str]:
        for piece in ("This is one sen", "tence. And this ", "is another one, which is longer."):
            given.append(piece)
            yield piece

    stream = tiny_tts.stream(arriving(), tiny_voice, config=config(), mode=mode)
    first = next(stream)
    assert first.text == "ðˌɪs ɪz wˈʌn sˈɛntᵊns."
    assert len(given) == 2
    chunks = [first, *stream]
    at_once = tiny_tts.stream([TEXT], tiny_voice, config=config(), mode=mode)
    assert np.array_equal(joined(chunks), joined(at_once))
    alone = joined(tiny_tts.stream(SENTENCES[0], tiny_voice, config=config(), mode=mode))
    assert np.array_equal(joined(chunks)[: len(alone)], alone)
    assert [c.is_final for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].samples.size == 0


def test_what_cannot_be_spoken_is_left_out_of_a_stream(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    chunks = tiny_tts.stream(["😀\n", SENTENCES[0], "\n...\n"], tiny_voice, config=config())
    assert np.array_equal(joined(chunks), tiny_tts.infer(SENTENCES[0], tiny_voice, config=config()).samples)
    with pytest.raises(TextError, match="without anything"):
        list(tiny_tts.stream(["😀\n", ""], tiny_voice, config=config()))
    with pytest.raises(TextError, match="nothing that can be spoken"):
        list(tiny_tts.stream("😀", tiny_voice, config=config()))


# --- low latency ---


@pytest.mark.parametrize("changes", [{}, {"num_beams": 2}, {"duration_factor": 0.8}, {"interval_silence_ms": 0}])
def test_low_latency_says_the_same_codes_in_the_same_time(
    tiny_tts: IndexTTS2, tiny_voice: Voice, changes: dict
) -> None:
    whole = tiny_tts.infer(TEXT, tiny_voice, config=config(**changes))
    stream = tiny_tts.stream(TEXT, tiny_voice, config=config(**changes), mode="low-latency", plan=PLAN)
    chunks = list(stream)
    assert len(chunks) > 2 * len(whole.segments)
    assert sum(len(c.samples) for c in chunks) == len(whole.samples)
    assert stream.run.codes == len(whole.mel_codes)
    assert [c.text for c in chunks if c.text] == [s.text for s in whole.segments]
    assert [c.is_final for c in chunks] == [False] * (len(chunks) - 1) + [True]
    assert np.isfinite(joined(chunks)).all()


def test_low_latency_codes_equal_the_exact_ones(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    from indextts2.inference.low_latency import chunked_segments
    from indextts2.inference.progress import Run
    from indextts2.inference.speaking import speak, speak_alone

    wanted = config().resolved(tiny_tts.config)
    steps = speak(tiny_tts, TEXT, tiny_voice, None, wanted, Run(), lambda *given: chunked_segments(*given, plan=PLAN))
    pieces = list(speak_alone(tiny_tts, steps))
    whole = tiny_tts.infer(TEXT, tiny_voice, config=config())
    assert np.array_equal(np.concatenate([p.codes for p in pieces]), whole.mel_codes)
    assert sum(p.mel.shape[1] for p in pieces) == whole.mel.shape[1]


def test_the_first_low_latency_chunk_comes_before_all_codes_are_known(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    seen: list[Progress] = []
    stream = tiny_tts.stream(TEXT, tiny_voice, config=config(), mode="low-latency", plan=PLAN, on_progress=seen.append)
    first = next(stream)
    # 18 frames are wanted; 11 codes fill them.
    assert max(p.done for p in seen if p.stage == "gpt") == 11
    assert len(first.samples) == 8 * 256 - int(PLAN.fade_ms * 22.05)


# 25 codes are exactly 43 frames, so that the fixed ratio of the low-latency mode is that of the exact one.
QUIET = {"flow_temperature": 0.0, "max_mel_tokens": 25, "min_new_tokens": 25}
UNCUT = ChunkPlan(first_frames=1000, max_frames=1000, prompt_frames=None)


def test_without_cuts_and_noise_the_modes_agree(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    whole = tiny_tts.infer(TEXT, tiny_voice, config=config(**QUIET))
    chunks = list(tiny_tts.stream(TEXT, tiny_voice, config=config(**QUIET), mode="low-latency", plan=UNCUT))
    assert len(chunks) == len(whole.segments)
    assert relative_l2(joined(chunks), whole.samples) < 1e-4
    cut = joined(tiny_tts.stream(TEXT, tiny_voice, config=config(**QUIET), mode="low-latency", plan=PLAN))
    assert 1e-3 < relative_l2(cut, whole.samples) < 1.0


def test_a_model_that_keeps_its_states_streams_without_a_second_pass(tmp_path: Path, tiny_voice: Voice) -> None:
    plain = tiny_model_config()
    model = dataclasses.replace(plain, gpt=dataclasses.replace(plain.gpt, skips_first_mel_position=False))
    tts = IndexTTS2.from_pretrained(write_tiny_model(tmp_path / "model", model), device="cpu")
    voice = dataclasses.replace(tiny_voice, model=tts.models.fingerprint)
    whole = tts.infer(TEXT, voice, config=config(**QUIET))
    assert np.array_equal(joined(tts.stream(TEXT, voice, config=config(**QUIET))), whole.samples)
    chunks = joined(tts.stream(TEXT, voice, config=config(**QUIET), mode="low-latency", plan=UNCUT))
    assert relative_l2(chunks, whole.samples) < 1e-4


def test_noise_belongs_to_frames_however_it_is_taken() -> None:
    def noise() -> FrameNoise:
        return FrameNoise(80, torch.Generator().manual_seed(3))

    whole = noise().take(0, 300)
    pieces = noise()
    parts = [pieces.take(a, b) for a, b in ((0, 10), (10, 130), (130, 131), (131, 300))]
    assert torch.equal(torch.cat(parts, dim=2), whole)
    assert torch.equal(pieces.take(70, 90), whole[:, :, 70:90])
    assert abs(float(whole.std()) - 1) < 0.05


@torch.inference_mode()
def test_the_vocoder_in_pieces_equals_the_vocoder_at_once(tiny_tts: IndexTTS2) -> None:
    """With a look-ahead that is the truth and as long as the halo, every sample is exact."""
    bigvgan = tiny_tts.models.bigvgan
    halo = bigvgan.halo_frames
    mel = torch.randn(1, 80, 120, generator=torch.Generator().manual_seed(0))
    stream = VocoderStream(bigvgan, fade_samples=300)
    parts, start = [], 0
    for frames in (4, 30, 7, 50, 29):
        stop = start + frames
        ahead = mel[:, :, stop : stop + halo] if stop < 120 else None
        parts.append(stream.push(mel[:, :, start:stop], ahead))
        start = stop
    assert relative_l2(np.concatenate(parts), bigvgan(mel)[0, 0].numpy()) < 1e-5


@torch.inference_mode()
def test_a_wrong_look_ahead_is_faded_out(tiny_tts: IndexTTS2) -> None:
    bigvgan = tiny_tts.models.bigvgan
    mel = torch.randn(1, 80, 60, generator=torch.Generator().manual_seed(0))
    whole = bigvgan(mel)[0, 0].numpy()
    stream = VocoderStream(bigvgan, fade_samples=300)
    wrong = torch.zeros(1, 80, 10)
    samples = np.concatenate((stream.push(mel[:, :, :30], wrong), stream.push(mel[:, :, 30:], None)))
    difference = np.abs(samples - whole)
    joint = 30 * 256
    assert difference[joint:].max() < 1e-5
    # Only what the vocoder's right halo could not know differs, and the closer to the joint the less.
    assert difference[: joint - (bigvgan.halo_frames + 2) * 256].max() < 1e-5
    assert difference[joint - 40 : joint].max() < 0.2 * max(difference.max(), 1e-9)


def test_the_sizes_of_chunks() -> None:
    plan = ChunkPlan(first_frames=24, growth=2.0, max_frames=344)
    assert [plan.frames(n) for n in (0, 1, 2, 3, 4, 5, 10**9)] == [24, 48, 96, 192, 344, 344, 344]
    assert ChunkPlan(first_frames=30, growth=1.0).frames(7) == 30
    for wrong in ({"first_frames": 3}, {"growth": 0.5}, {"fade_ms": 21.0}, {"context_frames": -1}, {"first_steps": 0}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            ChunkPlan(**wrong)


def test_fewer_steps_and_a_shorter_prompt_are_used(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    def flow_steps(plan: ChunkPlan) -> list[int | None]:
        seen: list[Progress] = []
        stream = tiny_tts.stream(
            TEXT, tiny_voice, config=config(), mode="low-latency", plan=plan, on_progress=seen.append
        )
        list(stream)
        return [p.total for p in seen if p.stage == "flow"]

    assert set(flow_steps(PLAN)) == {2}
    steps = flow_steps(dataclasses.replace(PLAN, first_steps=1))
    assert steps[:3] == [1, 2, 2]
    plain, *others = (
        joined(tiny_tts.stream(TEXT, tiny_voice, config=config(), mode="low-latency", plan=plan))
        for plan in (
            PLAN, dataclasses.replace(PLAN, prompt_frames=20), dataclasses.replace(PLAN, context_frames=0),
            dataclasses.replace(PLAN, look_ahead_frames=12),
        )
    )  # fmt: skip
    for other in others:
        assert len(plain) == len(other)
        assert not np.array_equal(plain, other)


def test_a_model_that_stops_at_once_is_an_error(
    tiny_tts: IndexTTS2, tiny_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpt = tiny_tts.models.gpt
    logits = gpt.logits

    def stop(hidden: torch.Tensor) -> torch.Tensor:
        result = logits(hidden)
        result[:, gpt.config.stop_mel_token] = 1e4
        return result

    monkeypatch.setattr(gpt, "logits", stop)
    for mode in MODES:
        with pytest.raises(GenerationError, match="before the first code"):
            list(tiny_tts.stream(TEXT, tiny_voice, config=config(), mode=mode))


def test_what_does_not_go_together_is_refused_at_once(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    with pytest.raises(UsageError, match="mode must be one of"):
        tiny_tts.stream(TEXT, tiny_voice, mode="fast")
    with pytest.raises(UsageError, match="target_seconds"):
        tiny_tts.stream(TEXT, tiny_voice, config=config(target_seconds=1.0), mode="low-latency")
    with pytest.raises(UsageError, match="low-latency"):
        tiny_tts.stream(TEXT, tiny_voice, plan=PLAN)
    with pytest.raises(UsageError, match="one string"):
        list(tiny_tts.stream(SENTENCES, tiny_voice, config=config(target_seconds=1.0)))


# --- cancellation ---


@pytest.mark.parametrize("mode", MODES)
def test_every_step_can_be_the_last(tiny_tts: IndexTTS2, tiny_voice: Voice, mode: Mode) -> None:
    """Cancelled after n reports of progress, no further step is reported, whatever n is."""
    text, wanted = SENTENCES[0], config(max_mel_tokens=12)
    plan = dataclasses.replace(PLAN, first_frames=4, look_ahead_frames=4) if mode == "low-latency" else None
    every: list[Progress] = []
    list(tiny_tts.stream(text, tiny_voice, config=wanted, mode=mode, plan=plan, on_progress=every.append))
    assert {p.stage for p in every} == {"gpt", "flow", "vocoder"}
    for stop_at in range(len(every)):
        seen: list[Progress] = []
        stream = tiny_tts.stream(
            text, tiny_voice, config=wanted, mode=mode, plan=plan, on_progress=seen.append,
            cancel=lambda seen=seen, stop_at=stop_at: len(seen) == stop_at,
        )  # fmt: skip
        with pytest.raises(Cancelled):
            list(stream)
        assert seen == every[:stop_at]


# --- memory ---


@pytest.mark.parametrize("mode", MODES)
def test_a_long_text_needs_no_more_memory_than_a_short_one(tiny_tts: IndexTTS2, tiny_voice: Voice, mode: Mode) -> None:
    """Of the tensors made for earlier segments none is left while later ones are spoken."""
    endless = (f"This is sentence number {n}. " for n in range(12))
    held = []
    for number, _chunk in enumerate(tiny_tts.stream(endless, tiny_voice, config=config(max_mel_tokens=10), mode=mode)):
        if number in (2, 3, 10, 11):
            gc.collect()
            held.append(_numbers_in_tensors())
    # A second of noise are 8000 numbers; a segment holds tens of thousands. Texts differ a little in length.
    assert max(held[2:]) <= max(held[:2]) + 2000


def _numbers_in_tensors() -> int:
    return sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor)


def test_a_stream_that_is_dropped_is_freed(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    stream = tiny_tts.stream(TEXT, tiny_voice, config=config())
    next(stream)
    freed = weakref.ref(stream.run)
    del stream
    gc.collect()
    assert freed() is None


# --- the synthesizer ---


def test_the_synthesizer_speaks_ahead_but_not_far(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    with StreamingSynthesizer(tiny_tts, plan=PLAN, max_chunks=2) as synthesizer:
        chunks = synthesizer.start(TEXT, tiny_voice, config=config())
        assert synthesizer.is_running
        assert synthesizer.stream is not None
        _wait_until(lambda: len(synthesizer._queue or ()) == 2)
        time.sleep(0.1)
        made = synthesizer.stream.run.codes
        time.sleep(0.1)
        assert synthesizer.stream.run.codes == made < 40
        with pytest.raises(UsageError, match="is speaking"):
            synthesizer.start(TEXT, tiny_voice)
        heard = joined(chunks)
    expected = tiny_tts.stream(TEXT, tiny_voice, config=config(), mode="low-latency", plan=PLAN)
    assert np.array_equal(heard, joined(expected))
    assert not synthesizer.is_running
    assert np.array_equal(joined(synthesizer.start(TEXT, tiny_voice, config=config())), heard)


def test_stop_ends_the_chunks_without_an_error(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    synthesizer = StreamingSynthesizer(tiny_tts, mode="exact", max_chunks=1)
    chunks = synthesizer.start(" ".join([TEXT] * 20), tiny_voice, config=config())
    next(chunks)
    assert synthesizer.stop()
    assert not synthesizer.is_running
    assert list(chunks) == []


def test_errors_reach_the_listener(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    with StreamingSynthesizer(tiny_tts) as synthesizer:
        with pytest.raises(TextError):
            list(synthesizer.start("...", tiny_voice, config=config()))

        def broken() -> Iterator[str]:
            yield SENTENCES[0] + "\n"
            raise ConnectionError("the line is dead")

        heard = []
        with pytest.raises(GenerationError, match="ConnectionError: the line is dead"):
            heard.extend(synthesizer.start(broken(), tiny_voice, config=config()))
        with pytest.raises(ConnectionError):
            list(tiny_tts.stream(broken(), tiny_voice, config=config()))


def test_playing_gives_the_device_every_sample(
    tiny_tts: IndexTTS2, tiny_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    import indextts2.audio.playback as playback

    played: list[np.ndarray] = []

    class Device:
        def __init__(self, sample_rate: int) -> None:
            assert sample_rate == 22050

        def write(self, samples: np.ndarray) -> None:
            played.append(samples)

        def __enter__(self) -> Device:
            return self

        def __exit__(self, *_: object) -> None:
            played.append(np.zeros(0, np.float32))

    monkeypatch.setattr(playback, "Player", Device)
    synthesizer = StreamingSynthesizer(tiny_tts, plan=PLAN)
    synthesizer.stream_and_play(TEXT, tiny_voice, config=config())
    expected = tiny_tts.stream(TEXT, tiny_voice, config=config(), mode="low-latency", plan=PLAN)
    assert np.array_equal(np.concatenate(played), joined(expected))


# --- the queue ---


def _chunk(index: int) -> AudioChunk:
    return AudioChunk(index, np.zeros(1, np.float32), 22050, "", False)


def _wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def test_a_full_queue_holds_its_maker_back() -> None:
    queue = ChunkQueue(capacity=2)
    put: list[int] = []

    def make() -> None:
        for index in range(5):
            queue.put(_chunk(index))
            put.append(index)
        queue.close()

    thread = threading.Thread(target=make)
    thread.start()
    _wait_until(lambda: put == [0, 1])
    time.sleep(0.05)
    assert put == [0, 1]
    assert queue.full
    assert [chunk.index for chunk in queue] == [0, 1, 2, 3, 4]
    thread.join()
    assert queue.done
    assert queue.get() is None


def test_cancelling_a_queue_frees_a_maker_that_waits() -> None:
    told: list[bool] = []
    queue = ChunkQueue(capacity=1, on_change=lambda: told.append(True))
    failed: list[Cancelled] = []

    def make() -> None:
        queue.put(_chunk(0))
        try:
            queue.put(_chunk(1))
        except Cancelled as error:
            failed.append(error)

    thread = threading.Thread(target=make)
    thread.start()
    _wait_until(lambda: queue.full)
    queue.cancel()
    thread.join(5)
    assert failed
    assert told
    with pytest.raises(Cancelled):
        queue.get()


def test_a_queue_gives_what_it_holds_before_its_error() -> None:
    queue = ChunkQueue()
    with pytest.raises(TimeoutError):
        queue.get(timeout_seconds=0.01)
    queue.put(_chunk(0))
    queue.close(GenerationError("nothing more"))
    queue.close()
    first = queue.get()
    assert first is not None
    assert first.index == 0
    with pytest.raises(GenerationError, match="nothing more"):
        queue.get()
    with pytest.raises(UsageError, match="at least 1 chunk"):
        ChunkQueue(0)
