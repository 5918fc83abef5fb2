"""Many requests on one model: each sounds as it would alone, none disturbs another, none can fill the memory."""

from __future__ import annotations

import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

from indextts2 import GenerationConfig, IndexTTS2, InferenceConfig, Voice
from indextts2.errors import AudioError, Cancelled, GenerationError, TextError, UsageError
from indextts2.inference import engine as engine_module
from indextts2.inference.engine import SpeechEngine, SpeechJob, SpeechRequest
from indextts2.inference.low_latency import ChunkPlan
from indextts2.inference.named_voices import named_voices
from indextts2.inference.streaming import MODES, Mode
from indextts2.models.gpt.bursts import Bursts
from indextts2.models.gpt.unified_voice import UnifiedVoice
from indextts2.native import library
from indextts2.types import AudioChunk, Waveform
from tests.conftest import relative_l2

PLAN = ChunkPlan(first_frames=8, growth=1.5, max_frames=20, context_frames=6, look_ahead_frames=10)
# Relative L2 norm of what another number of threads does; the phase of the vocoder's source sums it up.
ROUNDING = 1e-4
EXACT = library.native().library is not None and bool(library.loaded().product_is_fast())
"""Whether a product gives a row the same bits whatever rows there are."""
TEXTS = [
    "Hello there.",
    "This is one sentence. And this is another one, which is longer.",
    "Good morning, good evening and good night.",
    "A fourth text is here. It has two sentences.",
]


def request(voice: Voice, text: str, mode: Mode = "exact", **changes: Any) -> SpeechRequest:
    names = GenerationConfig.__dataclass_fields__
    generation = {"num_beams": 1, "max_mel_tokens": 30, "repetition_penalty": 1.0}
    generation |= {name: changes.pop(name) for name in list(changes) if name in names}
    config = InferenceConfig(
        generation=GenerationConfig(**generation), **{"seed": 1, "max_text_tokens_per_segment": 24} | changes
    )
    return SpeechRequest(text, voice, config=config, mode=mode)


def alone(tts: IndexTTS2, wanted: SpeechRequest) -> np.ndarray:
    plan = PLAN if wanted.mode == "low-latency" else None
    stream = tts.stream(wanted.text, wanted.speaker, wanted.emotion, wanted.config, mode=wanted.mode, plan=plan)
    return joined(stream)


def joined(chunks: Iterator[AudioChunk] | SpeechJob) -> np.ndarray:
    return np.concatenate([chunk.samples for chunk in chunks])


def assert_same(found: np.ndarray, expected: np.ndarray, lanes: int = 1) -> None:
    """The same bits, where operations had the same number of threads: lanes divide them."""
    if EXACT and (lanes == 1 or torch.get_num_threads() == 1):
        np.testing.assert_array_equal(found, expected)
    else:
        assert relative_l2(found, expected) < ROUNDING


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.002)


@pytest.fixture(params=[1, 2])
def engine(tiny_tts: IndexTTS2, request: pytest.FixtureRequest) -> Iterator[SpeechEngine]:
    with SpeechEngine(tiny_tts, max_running=4, plan=PLAN, max_chunks=100, lanes=request.param) as engine:
        yield engine


class Batches:
    """Records how many requests each step of the decoder fed, and makes each last `seconds` longer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.sizes: list[int] = []
        feed = engine_module.feed

        def counted(model: Any, feeds: Any) -> Any:
            self.sizes.append(len(feeds))
            time.sleep(seconds)
            return feed(model, feeds)

        monkeypatch.setattr(engine_module, "feed", counted)


def test_together_each_sounds_as_it_does_alone(
    tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Different texts, seeds, modes, beams and lengths, more requests than run at once, joining one after another."""
    variants: list[dict[str, Any]] = [
        {}, {"num_beams": 3}, {"mode": "low-latency"}, {"max_mel_tokens": 12},
        {"do_sample": False}, {"mode": "low-latency", "num_beams": 2}, {"duration_factor": 1.5}, {"cfg_rate": 0.0},
    ]  # fmt: skip
    wanted = [request(tiny_voice, TEXTS[n % 4], seed=n, **v) for n, v in enumerate(variants)]
    expected = [alone(tiny_tts, w) for w in wanted]
    batches = Batches(monkeypatch, seconds=0.005)
    jobs = []
    for one in wanted:
        jobs.append(engine.submit(one))
        time.sleep(0.02)
    found = [joined(job) for job in jobs]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other, engine.lanes)
    assert max(batches.sizes) >= 3
    assert engine.running == engine.waiting == 0


@pytest.mark.parametrize("mode", MODES)
def test_decoding_in_bursts(
    tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch, mode: Mode
) -> None:
    """As on a GPU, without its graphs. Codes come in other portions, which the low-latency mode may hear."""
    wanted = [request(tiny_voice, text, mode, seed=n, num_beams=1 + n % 2) for n, text in enumerate(TEXTS)]
    by_steps = [alone(tiny_tts, one) for one in wanted]
    bursts = Bursts(tiny_tts.models.gpt)
    monkeypatch.setattr(UnifiedVoice, "bursts", property(lambda _: bursts))
    by_bursts = [alone(tiny_tts, one) for one in wanted]
    together = [joined(job) for job in [engine.submit(one) for one in wanted]]
    for first, second, third in zip(by_steps, by_bursts, together, strict=True):
        assert len(first) == len(second)
        assert mode != "exact" or relative_l2(second, first) < ROUNDING
        assert relative_l2(third, second) < ROUNDING


@pytest.mark.skipif(not EXACT, reason="products of few rows are left to PyTorch")
@pytest.mark.usefixtures("one_thread")
def test_the_embedded_voice_sounds_the_same_together_bit_for_bit() -> None:
    tts = IndexTTS2.from_pretrained()
    voice = tts.voice(next(iter(named_voices().values())))
    variants: list[dict[str, Any]] = [{}, {"num_beams": 3}, {"mode": "low-latency", "num_beams": 2}, {}]
    wanted = [request(voice, TEXTS[n], seed=n, steps=2, **v) for n, v in enumerate(variants)]
    expected = [joined(tts.stream(w.text, voice, config=w.config, mode=w.mode)) for w in wanted]
    with SpeechEngine(tts, max_running=4, max_chunks=100, lanes=2) as engine:
        found = [joined(job) for job in [engine.submit(w) for w in wanted]]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_codes_of_a_batch_are_those_of_one(tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine) -> None:
    wanted = [request(tiny_voice, text, seed=n) for n, text in enumerate(TEXTS)]
    codes = [len(tiny_tts.infer(w.text, w.speaker, config=w.config).mel_codes) for w in wanted]
    jobs = [engine.submit(w) for w in wanted]
    for job in jobs:
        assert job.wait(60)
    assert [job.usage.codes for job in jobs] == codes


def test_a_job_joins_while_another_is_being_decoded(
    tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "PATIENCE_SECONDS", 0.0)
    batches = Batches(monkeypatch, seconds=0.005)
    long = engine.submit(request(tiny_voice, TEXTS[2], max_mel_tokens=700, min_new_tokens=700))
    wait_until(lambda: len(batches.sizes) > 20)
    short = engine.submit(request(tiny_voice, TEXTS[0], max_mel_tokens=10, min_new_tokens=10))
    assert short.wait(60)
    assert not long.done
    assert long.usage.codes < 700
    joined(long)
    assert batches.sizes[0] == batches.sizes[-1] == 1
    assert 2 in batches.sizes


def test_flow_and_decoding_take_turns(
    tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one request is in a flow of a thousand steps, another one is decoded and begins its own."""
    monkeypatch.setattr(engine_module, "PATIENCE_SECONDS", 0.0)
    flowing = engine.submit(request(tiny_voice, TEXTS[0], max_mel_tokens=5, steps=1000))
    wait_until(lambda: "gpt_latents" in flowing.timings)
    quick = engine.submit(request(tiny_voice, TEXTS[0], max_mel_tokens=20, steps=2))
    assert quick.wait(60)
    assert not flowing.done
    flowing.cancel()


def test_the_listener_who_runs_dry_first_is_served_first(
    tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four that come together hear their first sound one after the other, or two by two, then all go on alike."""
    order: list[SpeechJob] = []
    deliver = engine._deliver

    def delivered(task: Any, speech: Any) -> None:
        order.append(task.job)
        deliver(task, speech)

    monkeypatch.setattr(engine, "_deliver", delivered)
    texts = [TEXTS[2]] * 4
    with engine._changed:  # no lane begins before all are there
        jobs = [engine.submit(request(tiny_voice, t, "low-latency", min_new_tokens=30, steps=20)) for t in texts]
    for job in jobs:
        assert job.wait(60)
    numbers = [jobs.index(job) for job in order]
    assert all(abs(number - place) < engine.lanes for place, number in enumerate(numbers[:4]))
    half = numbers[: len(numbers) // 2]
    assert max(map(half.count, range(4))) - min(map(half.count, range(4))) <= 1


def test_a_piece_that_is_alone_gets_all_threads_and_two_share_them(
    tiny_tts: IndexTTS2, tiny_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[tuple[str, int]] = set()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(
        engine_module, "use_threads", lambda count, _: used.add((threading.current_thread().name, count))
    )
    with SpeechEngine(tiny_tts, lanes=2) as engine:
        joined(engine.submit(request(tiny_voice, TEXTS[1])))
        assert used == {("speech-lane-0", 4)}
        jobs = [engine.submit(request(tiny_voice, text, seed=n, steps=20)) for n, text in enumerate(TEXTS)]
        for job in jobs:
            joined(job)
    assert used >= {("speech-lane-0", 2), ("speech-lane-1", 2)}
    assert ("speech-lane-1", 4) not in used


def test_jobs_are_begun_in_order_and_not_too_many(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    with SpeechEngine(tiny_tts, max_running=2) as engine:
        jobs = [engine.submit(request(tiny_voice, TEXTS[2], seed=n, max_mel_tokens=60)) for n in range(6)]
        most = 0
        while not all(job.done for job in jobs):
            most = max(most, engine.running)
            time.sleep(0.001)
        assert most == 2
        queued = [job.timings["queued"] for job in jobs]
        # Each is timed from its own submission: of two that begin at once the later one may look a moment sooner.
        assert all(later > earlier - 0.01 for earlier, later in itertools.pairwise(queued))
        assert all(job.timings["queued"] <= job.timings["first_audio"] <= job.timings["total"] for job in jobs)
        assert all(job.usage.text_tokens > 0 for job in jobs)
        assert {"text", "gpt", "flow", "vocoder"} <= set(jobs[0].timings)


# --- errors ---


def test_a_bad_job_disturbs_no_other(tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine) -> None:
    good = request(tiny_voice, TEXTS[1])
    expected = alone(tiny_tts, good)
    silent = Waveform(np.zeros(30000, np.float32), 22050)
    nan = dataclasses.replace(tiny_voice, speaker_latents=tiny_voice.speaker_latents * float("nan"))
    odd = dataclasses.replace(tiny_voice, style=tiny_voice.style[:, :3])
    bad: list[tuple[SpeechRequest, type[Exception], str]] = [
        (request(tiny_voice, "..."), TextError, "nothing that can be spoken"),
        (SpeechRequest(TEXTS[0], silent), AudioError, "silen"),
        (request(nan, TEXTS[0]), GenerationError, "NaN"),
        (request(odd, TEXTS[0]), GenerationError, "the synthesis failed"),
        (request(tiny_voice, TEXTS[0], target_seconds=1000.0), UsageError, "half to twice"),
    ]
    jobs: list[SpeechJob] = []
    for wrong, _, _ in bad:
        jobs += [engine.submit(wrong), engine.submit(good)]
    for (_, kind, message), job in zip(bad, jobs[::2], strict=True):
        with pytest.raises(kind, match=message):
            list(job)
        assert isinstance(job.error, kind)
        assert job.done
        assert not _frames_of_steps(job.error)
    for job in jobs[1::2]:
        assert_same(joined(job), expected, engine.lanes)
        assert job.error is None


def _frames_of_steps(error: BaseException | None) -> list[str]:
    """Frames of the generator of speech that an error keeps alive, with all that they hold."""
    names = []
    while error is not None:
        trace = error.__traceback__
        while trace is not None:
            names.append(trace.tb_frame.f_code.co_name)
            trace = trace.tb_next
        error = error.__cause__
    return [name for name in names if name in ("speak", "whole_segments", "decoding", "flowing")]


def test_scores_that_break_in_the_middle_of_a_batch_end_one_job_only(
    tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [request(tiny_voice, text, seed=n) for n, text in enumerate(TEXTS[:3])]
    expected = [alone(tiny_tts, w) for w in good]
    feed, broken = engine_module.feed, []

    def breaking(model: Any, feeds: Any) -> Any:
        answers = feed(model, feeds)
        if len(feeds) == 4:
            broken.append(1)
            answers[3] = (answers[3][0], answers[3][1] * float("nan"))
        return answers

    monkeypatch.setattr(engine_module, "feed", breaking)
    jobs = [engine.submit(w) for w in [*good, request(tiny_voice, TEXTS[3], min_new_tokens=30)]]
    with pytest.raises(GenerationError, match="NaN"):
        list(jobs[3])
    assert broken
    for job, one in zip(jobs[:3], expected, strict=True):
        assert_same(joined(job), one, engine.lanes)


def test_a_step_that_fails_as_a_batch_is_tried_one_by_one(
    tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [request(tiny_voice, text, seed=n, num_beams=2) for n, text in enumerate(TEXTS[:3])]
    expected = [alone(tiny_tts, w) for w in wanted]
    feed, failures = engine_module.feed, []

    def failing(model: Any, feeds: Any) -> Any:
        if len(feeds) > 1:
            failures.append(1)
            raise RuntimeError("out of memory")
        return feed(model, feeds)

    monkeypatch.setattr(engine_module, "feed", failing)
    jobs = [engine.submit(w) for w in wanted]
    for job, one in zip(jobs, expected, strict=True):
        assert_same(joined(job), one, engine.lanes)
    assert failures


def test_an_engine_that_fails_loses_what_it_has_and_goes_on(
    tiny_voice: Voice, engine: SpeechEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(engine, "_decode", broken)
    with pytest.raises(GenerationError, match="RuntimeError: a bug"):
        list(engine.submit(request(tiny_voice, TEXTS[0])))
    monkeypatch.undo()
    assert len(joined(engine.submit(request(tiny_voice, TEXTS[0]))))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_nobody_waits_for_an_engine_that_was_killed(
    tiny_tts: IndexTTS2, tiny_voice: Voice, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = SpeechEngine(tiny_tts, max_running=1)
    submitted = threading.Event()

    def killed(_: Any) -> None:
        submitted.wait(20)
        raise SystemExit

    monkeypatch.setattr(engine, "_decode", killed)
    jobs = [engine.submit(request(tiny_voice, TEXTS[0])) for _ in range(2)]
    submitted.set()
    for job in jobs:
        with pytest.raises(GenerationError, match="has died"):
            list(job)
    wait_until(lambda: not engine.alive)
    with pytest.raises(UsageError, match="closed"):
        engine.submit(request(tiny_voice, TEXTS[0]))
    assert engine.close(1)


def test_wrong_requests_are_refused_at_once(tiny_tts: IndexTTS2, tiny_voice: Voice, engine: SpeechEngine) -> None:
    with pytest.raises(UsageError, match="mode must be one of"):
        engine.submit(dataclasses.replace(request(tiny_voice, TEXTS[0]), mode="fast"))
    with pytest.raises(UsageError, match="target_seconds"):
        engine.submit(request(tiny_voice, TEXTS[0], mode="low-latency", target_seconds=1.0))
    with pytest.raises(UsageError, match="max_running"):
        SpeechEngine(tiny_tts, max_running=0)


# --- cancellation ---


@pytest.mark.parametrize("mode", MODES)
def test_cancel_stops_within_a_step(tiny_voice: Voice, engine: SpeechEngine, mode: Mode) -> None:
    def decoding(job: SpeechJob) -> bool:
        return job.usage.codes >= 3

    def flowing(job: SpeechJob) -> bool:
        return "gpt_latents" in job.timings

    for reached, changes in ((decoding, {"max_mel_tokens": 700, "min_new_tokens": 700}), (flowing, {"steps": 900})):
        job = engine.submit(request(tiny_voice, TEXTS[0], mode=mode, **changes))
        wait_until(lambda job=job, reached=reached: reached(job))
        job.cancel()
        assert job.wait(2)
        codes = job.usage.codes
        with pytest.raises(Cancelled):
            list(job)
        assert isinstance(job.error, Cancelled)
        assert engine.running == 0
        assert job.usage.codes == codes < 700


def test_a_job_that_waits_can_be_cancelled(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    with SpeechEngine(tiny_tts, max_running=1) as engine:
        first = engine.submit(request(tiny_voice, TEXTS[2], max_mel_tokens=700, min_new_tokens=700))
        second, third = (engine.submit(request(tiny_voice, TEXTS[0])) for _ in range(2))
        second.cancel()
        with pytest.raises(Cancelled):
            next(iter(second))
        assert second.wait(2)
        assert second.usage.codes == 0
        assert not first.done
        first.cancel()
        assert len(joined(third))


def test_cancelling_a_finished_job_changes_nothing(tiny_voice: Voice, engine: SpeechEngine) -> None:
    job = engine.submit(request(tiny_voice, TEXTS[0]))
    chunks = list(job)
    job.cancel()
    assert chunks[-1].is_final
    assert job.error is None
    assert list(job) == []


# --- back-pressure ---


def test_a_reader_that_sleeps_stops_its_job_but_no_other(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    wanted = request(tiny_voice, " ".join(TEXTS), mode="low-latency")
    expected = alone(tiny_tts, wanted)
    with SpeechEngine(tiny_tts, max_running=2, plan=PLAN, max_chunks=2) as engine:
        sleeper = engine.submit(wanted)
        wait_until(lambda: sleeper._queue.full)
        time.sleep(0.1)
        codes = sleeper.usage.codes
        other = engine.submit(request(tiny_voice, TEXTS[0]))
        assert len(joined(other))
        assert sleeper.usage.codes == codes
        assert len(sleeper._queue) == 2
        assert_same(joined(sleeper), expected, engine.lanes)


def test_an_idle_engine_takes_no_processor_time(tiny_voice: Voice, engine: SpeechEngine) -> None:
    joined(engine.submit(request(tiny_voice, TEXTS[0])))
    before = time.process_time()
    time.sleep(0.5)
    assert time.process_time() - before < 0.2


# --- the end ---


def test_close_lets_everything_finish(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    engine = SpeechEngine(tiny_tts, max_running=2)
    jobs = [engine.submit(request(tiny_voice, text)) for text in TEXTS]
    assert engine.alive
    assert engine.close(60)
    assert not engine.alive
    assert all(job.done and job.error is None for job in jobs)
    assert all(len(joined(job)) for job in jobs)
    assert engine.close(1)
    with pytest.raises(UsageError, match="closed"):
        engine.submit(request(tiny_voice, TEXTS[0]))


def test_close_cancels_what_takes_too_long(tiny_tts: IndexTTS2, tiny_voice: Voice) -> None:
    engine = SpeechEngine(tiny_tts, max_running=1, plan=PLAN, max_chunks=1)
    unread = engine.submit(request(tiny_voice, " ".join(TEXTS), mode="low-latency"))
    waiting = engine.submit(request(tiny_voice, TEXTS[0]))
    wait_until(lambda: unread._queue.full)
    before = time.process_time()
    assert not engine.close(0.3)
    assert time.process_time() - before < 0.25
    for job in (unread, waiting):
        assert isinstance(job.error, Cancelled)
        with pytest.raises(Cancelled):
            list(job)
    assert not any(thread.is_alive() for thread in engine._lanes)


def test_many_short_jobs_leave_nothing_behind(tiny_voice: Voice, engine: SpeechEngine) -> None:
    def round_of_jobs() -> None:
        jobs = [engine.submit(request(tiny_voice, "Hello there.", seed=n, max_mel_tokens=4)) for n in range(12)]
        for number, job in enumerate(jobs):
            if number % 3 == 0:
                job.cancel()
            else:
                joined(job)

    import gc

    sizes = []
    for _ in range(3):
        round_of_jobs()
        wait_until(lambda: engine.running == engine.waiting == 0)
        gc.collect()
        sizes.append(sum(o.numel() for o in gc.get_objects() if type(o) is torch.Tensor))
    assert sizes[2] <= sizes[0]
