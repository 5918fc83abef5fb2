"""Decoding on a GPU: steps of fixed shape in bursts, for all requests together, without waiting for any of their codes.

S slots, one for each request; B beams; L rows of a slot's keys and values; H heads, K head width, D model width,
V codes; C candidates of a step (1, with beams 2 B); n the slots in use, rounded up.

One step reads its codes from static buffers, and leaves there the codes that it chose. So any number of steps can be
launched one behind the other, each as one CUDA graph. Every step also logs its candidates. The log of a burst is copied
to the host while the next burst runs, and there the decoders of the requests (`decoders`) take from it what they would
have chosen: they alone know when a request is finished. What was computed beyond that is dropped.

A slot keeps the rows of all its beams side by side, and a table of those that each beam descends from, as `cache` does;
here dead rows stay. Attention runs over the first rows of all slots, their number rounded up, and a mask.

Random numbers are drawn on the device of each request's generator in the order in which `decoders` draw them, ahead of
time. A finished request turns its generator back to where it would be without the surplus, so no two requests may share
one.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from indextts2.models.gpt.decoders import Candidate
from indextts2.models.gpt.sampling import forbid, process, race
from indextts2.models.graphs import Graphs, bucket

if TYPE_CHECKING:
    from indextts2.config import GenerationConfig
    from indextts2.models.gpt.generation import Request
    from indextts2.models.gpt.unified_voice import UnifiedVoice

BURST = 8
"""Steps that are launched at a time. A request computes fewer than two bursts beyond its end."""
SMALLEST_ROWS = 512
"""Least number of rows that attention runs over; then twice, four times, ... as many."""


@dataclass
class Buffers:
    """All that the steps read and write."""

    keys: Tensor  # (layers, S, H, L, K)
    values: Tensor  # (layers, S, H, L, K)
    visible: Tensor  # (S, B, L) bool: the rows that each beam descends from
    length: Tensor  # (S, 1) rows held
    codes: Tensor  # (S, B) to feed next
    position: Tensor  # (S, 1) their mel position
    new_tokens: Tensor  # (S, 1) codes chosen so far
    totals: Tensor  # (S, B) float32: scores of the beams; 0 without beams
    seen: Tensor  # (S, B, V) bool: ids in the history of each beam
    active: Tensor  # (S, 1) bool: other slots are computed too, and stay as they are
    waits: Tensor  # (S, BURST, B * V) float32, see `sampling.race`
    tick: Tensor  # (1,) step of the burst
    log: Tensor  # (BURST, S, C, 3) float64: code + V * beam, score, whether it is possible
    states: Tensor  # (BURST, S, B, D): what the candidates were chosen from

    @classmethod
    def empty(cls, model: UnifiedVoice, beams: int, slots: int, rows: int) -> Buffers:
        """For `slots` requests of `beams` beams and `rows` rows."""
        config, stack = model.config, model.gpt
        make = functools.partial(torch.zeros, device=model.device)
        cached = (len(stack.h), slots, stack.heads, rows, stack.head_dim)
        dtype, integer, codes = stack.ln_f.weight.dtype, torch.int64, config.number_mel_codes
        return cls(
            keys=make(cached, dtype=dtype),
            values=make(cached, dtype=dtype),
            visible=make((slots, beams, rows), dtype=torch.bool),
            length=make((slots, 1), dtype=integer),
            codes=make((slots, beams), dtype=integer),
            position=make((slots, 1), dtype=integer),
            new_tokens=make((slots, 1), dtype=integer),
            totals=make((slots, beams)),
            seen=make((slots, beams, codes), dtype=torch.bool),
            active=make((slots, 1), dtype=torch.bool),
            waits=make((slots, BURST, beams * codes)).fill_(1.0),
            tick=make(1, dtype=integer),
            log=make((BURST, slots, _candidates(beams), 3), dtype=torch.float64),
            states=make((BURST, slots, beams, config.model_dim), dtype=dtype),
        )

    @property
    def slots(self) -> int:
        return self.visible.shape[0]

    @property
    def rows(self) -> int:
        return self.visible.shape[2]

    def take_over(self, old: Buffers) -> None:
        """Copy what smaller buffers hold."""
        for part in dataclasses.fields(self):
            smaller = getattr(old, part.name)
            getattr(self, part.name)[tuple(slice(size) for size in smaller.shape)] = smaller


@dataclass(frozen=True)
class Burst:
    """Steps on their way: their log and states, which are there once `done` is reached (None: they are)."""

    log: Tensor  # (BURST, n, C, 3) on the host
    states: Tensor | None  # (BURST, n, B, D)
    done: torch.cuda.Event | None
    generator_state: Tensor  # before the draws of these steps


@dataclass
class Seat:
    """The place of one request: its slot, the rows and steps launched so far, and the bursts not looked at."""

    slot: int
    rows: int
    launched: int
    bursts: deque[Burst] = field(default_factory=deque)


class Bursts:
    """The decoder of one model. Requests take a slot when they are first advanced, and leave it when they are finished
    or forgotten. Any thread may call it."""

    def __init__(self, model: UnifiedVoice) -> None:
        self._model = model
        self._batches: dict[int, _Batch] = {}  # by beams
        self._lock = threading.Lock()

    @torch.inference_mode()
    def advance(self, requests: Sequence[Request]) -> list[Exception | None]:
        """Launch a burst of steps for these unfinished requests, and take the codes of the bursts before it.

        Returns:
            For each request the error that ended it, if any.
        """
        errors: dict[Request, Exception] = {}
        with self._lock:
            for (beams, options), group in _by_options(requests).items():
                batch = self._batch(beams)
                try:
                    batch.launch(options, group)
                except Exception as error:
                    errors |= dict.fromkeys(group, error)
                    continue
                for request in group:
                    try:
                        batch.take(request)
                    except Exception as error:
                        errors[request] = error
            for request in errors:
                self._batch(request.config.num_beams).seats.pop(request, None)
        return [errors.get(request) for request in requests]

    @torch.inference_mode()
    def warm_up(self, config: GenerationConfig, slots: int, rows: int) -> None:
        """Make room for `slots` requests of `rows` rows, and record the steps of all smaller numbers of both."""
        with self._lock:
            batch = self._batch(config.num_beams)
            batch.reserve(slots, rows)
            for count in _doublings(1, batch.buffers.slots):
                for length in _doublings(SMALLEST_ROWS, batch.buffers.rows):
                    batch.prepare(_sampling(config), count, length)

    def _batch(self, beams: int) -> _Batch:
        if beams not in self._batches:
            self._batches[beams] = _Batch(self._model, beams)
        return self._batches[beams]


class _Batch:
    """The slots of all requests with the same number of beams."""

    def __init__(self, model: UnifiedVoice, beams: int) -> None:
        self._model = model
        self._beams = beams
        self._keep_states = not model.config.skips_first_mel_position
        self._beam_index = torch.arange(beams, device=model.device)
        self.buffers = Buffers.empty(model, beams, 1, SMALLEST_ROWS)
        self.graphs = Graphs(model.device)
        self._weights = self._addresses()
        self.seats: weakref.WeakKeyDictionary[Request, Seat] = weakref.WeakKeyDictionary()

    # On the host

    def launch(self, options: GenerationConfig, requests: Sequence[Request]) -> None:
        """Launch one burst for those requests that have not reached their limit."""
        for request in requests:
            if request not in self.seats:
                self.seats[request] = self._join(request)
        going = [r for r in requests if self.seats[r].launched < r.config.max_mel_tokens]
        if not going:
            return
        seats = [self.seats[request] for request in going]
        count = bucket(max(seat.slot for seat in seats) + 1, 1)
        # One step more, as a slot that rests still writes where it will go on.
        rows = bucket(max(seat.rows for seat in seats) + (BURST + 1) * self._beams, SMALLEST_ROWS)
        self.reserve(count, rows)
        self.prepare(options, count, rows)
        states = self._fill_waits(options, going)
        used = {seat.slot for seat in seats}
        self.buffers.active.copy_(self._upload(torch.tensor([[slot in used] for slot in range(self.buffers.slots)])))
        self.buffers.tick.zero_()
        for _ in range(BURST):
            self.graphs.run((options, count, rows), functools.partial(self._step, options, count, rows))
        log, kept, done = self._download(count)
        for seat, state in zip(seats, states, strict=True):
            seat.bursts.append(Burst(log, kept, done, state))
            seat.launched += BURST
            seat.rows += BURST * self._beams

    def take(self, request: Request) -> None:
        """Hand `request` the candidates of its bursts, but for the newest unless that is the last.

        Raises:
            GenerationError: the model gives no finite score.
        """
        seat = self.seats[request]
        held_back = seat.launched < request.config.max_mel_tokens
        while len(seat.bursts) > held_back:
            burst = seat.bursts.popleft()
            if burst.done is not None:
                burst.done.synchronize()
            for step in range(BURST):
                rows = burst.log[step, seat.slot].tolist()
                candidates = [
                    Candidate(*divmod(int(index), self._model.config.number_mel_codes), total, bool(possible))
                    for index, total, possible in rows
                ]
                request.decoder.take(candidates, None if burst.states is None else burst.states[step, seat.slot])
                if request.finished:
                    self._rewind(request, burst, step + 1)
                    del self.seats[request]
                    return

    def reserve(self, slots: int, rows: int) -> None:
        """Make the buffers larger if they are too small for `slots` slots of `rows` rows."""
        old = self.buffers
        slots, rows = bucket(slots, 1), bucket(rows, SMALLEST_ROWS)
        if slots > old.slots or rows > old.rows:
            self.graphs.clear()
            self.buffers = Buffers.empty(self._model, self._beams, max(slots, old.slots), max(rows, old.rows))
            self.buffers.take_over(old)

    def prepare(self, options: GenerationConfig, count: int, rows: int) -> None:
        """Record the step of `count` slots and `rows` rows if it is not yet. It runs for that, with no slot active."""
        self.buffers.active.zero_()
        self.graphs.prepare((options, count, rows), functools.partial(self._step, options, count, rows))

    def _join(self, request: Request) -> Seat:
        """Fill the first free slot with what the request has so far: its prefix and the first code."""
        assert request.decoder.new_tokens == 1, "the request was advanced elsewhere"
        taken = {seat.slot for seat in self.seats.values()}
        slot = next(slot for slot in range(len(taken) + 1) if slot not in taken)
        prompt, start = request.prompt, request.decoder.start()
        self._check_weights()
        self.reserve(slot + 1, prompt.rows + self._beams)
        buffers = self.buffers
        for cached in (buffers.keys, buffers.values):
            cached[:, slot].zero_()  # a mask does not hide the NaN that damaged weights may have left
        for layer, (keys, values) in enumerate(zip(prompt.cache.keys, prompt.cache.values, strict=True)):
            buffers.keys[layer, slot, :, : prompt.rows] = keys[0, :, : prompt.rows]
            buffers.values[layer, slot, :, : prompt.rows] = values[0, :, : prompt.rows]
        buffers.visible[slot] = False
        buffers.visible[slot, :, : prompt.rows] = True
        buffers.seen[slot] = self._upload(start.seen)
        buffers.length[slot] = prompt.rows
        buffers.position[slot] = self._model.decode_position(0)
        buffers.new_tokens[slot] = 1
        buffers.codes[slot] = self._upload(torch.tensor(start.codes))
        buffers.totals[slot] = self._upload(torch.tensor(start.totals))
        return Seat(slot, prompt.rows, launched=1)

    def _fill_waits(self, options: GenerationConfig, requests: Sequence[Request]) -> list[Tensor]:
        """Draw for one burst of each request; the states of their generators before."""
        states = [request.generator.get_state() for request in requests]
        if options.do_sample:
            # Drawing for one request takes a good part of what a burst takes.
            together = map if len(requests) == 1 else _threads().map
            for request, drawn in zip(requests, together(self._draw, requests), strict=True):
                self.buffers.waits[self.seats[request].slot].copy_(drawn, non_blocking=True)
        return states

    def _draw(self, request: Request) -> Tensor:
        """The waits (BURST, B * V) of the next steps, on the device of the generator."""
        generator = request.generator
        pins = self._model.device.type == "cuda" and generator.device.type == "cpu"
        drawn = torch.empty(self.buffers.waits.shape[1:], device=generator.device, pin_memory=pins)
        for step in drawn:
            step.exponential_(generator=generator)
        return drawn

    def _check_weights(self) -> None:
        """Graphs read the weights where they were; where weights were replaced, steps are recorded again."""
        if (addresses := self._addresses()) != self._weights:
            self.graphs.clear()
            self._weights = addresses

    def _addresses(self) -> tuple[int, ...]:
        return tuple(parameter.data_ptr() for parameter in self._model.parameters())

    def _rewind(self, request: Request, burst: Burst, steps: int) -> None:
        """Turn the generator of a finished request back to where it is after `steps` steps of `burst`."""
        request.generator.set_state(burst.generator_state)
        if request.config.do_sample:
            again = torch.empty(self.buffers.waits.shape[2], device=request.generator.device)
            for _ in range(steps):
                again.exponential_(generator=request.generator)

    def _upload(self, values: Tensor) -> Tensor:
        """`values` on the device of the model; the host does not wait for it."""
        pinned = values.pin_memory() if self._model.device.type == "cuda" and values.device.type == "cpu" else values
        return pinned.to(self._model.device, non_blocking=True)

    def _download(self, count: int) -> tuple[Tensor, Tensor | None, torch.cuda.Event | None]:
        """The log of the first `count` slots on its way to the host, a copy of the states, and when both are there."""
        states = self.buffers.states[:, :count].clone() if self._keep_states else None
        log = self.buffers.log[:, :count].clone()
        if not log.is_cuda:
            return log, states, None
        # Pinned memory comes from a pool that reuses it only after the copy.
        on_host = torch.empty(log.shape, dtype=log.dtype, pin_memory=True).copy_(log, non_blocking=True)
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(log.device))
        return on_host, states, done

    # On the device: nothing below waits for it

    def _step(self, options: GenerationConfig, count: int, rows: int) -> None:
        """Feed the codes of the first `count` slots, choose the next ones, and log the candidates."""
        b, beams = self.buffers, self._beams
        active, visible = b.active[:count], b.visible[:count]
        # Slots that are used, and those that rest, never come to these limits.
        own_rows = (b.length[:count] + self._beam_index).clamp(max=b.rows - 1)
        positions = b.position[:count].clamp(max=self._model.config.mel_positions - 1).expand(count, beams)
        visible.scatter_(2, own_rows[..., None], True)
        hidden = torch.zeros((count, 1, beams, rows), dtype=b.keys.dtype, device=b.keys.device)
        mask = hidden.masked_fill_(~visible[:, None, :, :rows], float("-inf"))
        x = self._model.embed_codes(b.codes[:count], positions).flatten(0, 1)
        states = self._model.final_norm(
            self._model.gpt.run(x, functools.partial(self._attend, own_rows=own_rows, mask=mask))
        )
        index, totals, possible = self._choose(options, self._model.logits(states), count)

        if self._keep_states:
            b.states[:, :count].index_copy_(0, b.tick, states.view(1, count, beams, -1))
        entry = torch.stack((index.double(), totals.double(), possible.double()), dim=-1)
        b.log[:, :count].index_copy_(0, b.tick, entry[None])
        b.tick.add_(1).remainder_(BURST)

        vocabulary = b.seen.shape[2]
        is_stop = index % vocabulary == self._model.config.stop_mel_token
        going = is_stop.int().argsort(dim=1, stable=True)[:, :beams]  # the best that do not stop
        parents, codes = index.gather(1, going) // vocabulary, index.gather(1, going) % vocabulary
        seen = b.seen[:count].gather(1, parents[..., None].expand(-1, -1, vocabulary))
        _keep(b.seen, seen.scatter(2, codes[..., None], True), active[..., None])
        _keep(b.visible, visible.gather(1, parents[..., None].expand(-1, -1, b.rows)), active[..., None])
        _keep(b.codes, codes, active)
        if beams > 1:
            _keep(b.totals, totals.gather(1, going), active)
        b.length[:count] += active * beams
        b.position[:count] += active
        b.new_tokens[:count] += active

    def _attend(self, layer: int, qkv: Tensor, *, own_rows: Tensor, mask: Tensor) -> Tensor:
        """Store the rows of a step at `own_rows` (n, B), and attend to those that `mask` (n, 1, B, rows) leaves."""
        (count, beams), rows = own_rows.shape, mask.shape[-1]
        keys, values = self.buffers.keys[layer, :count], self.buffers.values[layer, :count]
        q, k, v = qkv.view(count, beams, 3, keys.shape[1], -1).permute(2, 0, 3, 1, 4)
        at = own_rows[:, None, :, None].expand(k.shape)
        keys.scatter_(2, at, k)
        values.scatter_(2, at, v)
        attended = F.scaled_dot_product_attention(q, keys[:, :, :rows], values[:, :, :rows], attn_mask=mask)
        return attended.transpose(1, 2).reshape(count * beams, -1)

    def _choose(self, options: GenerationConfig, logits: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n * B, V) -> what `decoders` choose, for all slots: index, score, and whether it is possible, (n, C).

        Best first. The index is code + V * beam. Without beams the score is the log-probability.
        """
        b, beams, config = self.buffers, self._beams, self._model.config
        scores = logits if beams == 1 else logits.log_softmax(dim=-1)
        new_tokens = b.new_tokens[:count].expand(count, beams).reshape(-1, 1)
        scores = process(scores, b.seen[:count].flatten(0, 1), options, new_tokens, config.stop_mel_token)
        scores = forbid(scores, config.start_mel_token, config.stop_mel_token)
        totals = (scores.view(count, beams, -1) + b.totals[:count, :, None]).flatten(1)
        if not options.do_sample:
            index = totals.argmax(dim=1, keepdim=True) if beams == 1 else totals.topk(_candidates(beams)).indices
            chosen = totals.gather(1, index)
            possible = torch.isfinite(chosen)
            return index, chosen - totals.logsumexp(dim=1, keepdim=True) if beams == 1 else chosen, possible
        probabilities = totals.softmax(dim=-1)
        drawn = b.waits[:count].index_select(1, b.tick)[:, 0]
        index = race(probabilities, drawn, _candidates(beams))
        if beams > 1:
            order = totals.gather(1, index).sort(dim=1, descending=True, stable=True).indices
            index = index.gather(1, order)
        chosen = probabilities.gather(1, index)
        logarithm = chosen.clamp(min=torch.finfo(torch.float32).tiny).log()
        return index, logarithm if beams == 1 else totals.gather(1, index), chosen > 0


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="indextts2-draws")


def _candidates(beams: int) -> int:
    return 1 if beams == 1 else 2 * beams


def _keep(buffer: Tensor, new: Tensor, active: Tensor) -> None:
    """Store `new` (n, ...) in the first n slots of `buffer`, where they are `active`."""
    held = buffer[: len(new)]
    held.copy_(torch.where(active, new, held))


def _sampling(config: GenerationConfig) -> GenerationConfig:
    """`config` with the same values where a step does not read them, so that equal steps share one graph."""
    return dataclasses.replace(config, length_penalty=0.0, max_mel_tokens=max(1, config.min_new_tokens))


def _by_options(requests: Sequence[Request]) -> dict[tuple[int, GenerationConfig], list[Request]]:
    groups: dict[tuple[int, GenerationConfig], list[Request]] = {}
    for request in requests:
        groups.setdefault((request.config.num_beams, _sampling(request.config)), []).append(request)
    return groups


def _doublings(first: int, last: int) -> list[int]:
    """first, 2 first, 4 first, ... up to `last`."""
    return [first << n for n in range((last // first).bit_length())]
