"""Autoregressive decoding: one request at a time, step by step, or several in one batch.

N prefix rows, M codes, D model width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from indextts2.config import GenerationConfig
from indextts2.errors import Cancelled, GenerationError
from indextts2.models.gpt.cache import Lane
from indextts2.models.gpt.decoders import Node, make_decoder, path
from indextts2.models.gpt.quantised import check_weights
from indextts2.models.gpt.unified_voice import Prompt, UnifiedVoice
from indextts2.native.product import MOST_ROWS

FIRST_STEPS = 128
"""The cache of a new request has room for so many steps before it grows, if it is decoded step by step."""


@dataclass(frozen=True)
class Generation:
    """What was decoded for one segment.

    `codes` (M,) int64 on the CPU, without the stop token. `hit_limit`: they ended at `max_mel_tokens`. `score`: sum
    of processed scores (with beams, over length ** length_penalty). `prompt`: the prefilled cache, for
    `UnifiedVoice.latents`. `latents` (1, M, D): the states that predicted the codes, only of a model whose decode
    positions are those of the second pass (`skips_first_mel_position` False); it needs no second pass.
    """

    codes: Tensor
    hit_limit: bool
    score: float
    prompt: Prompt
    latents: Tensor | None


@dataclass(frozen=True)
class Feed:
    """The rows of one request in one step: a code for each, their common mel position, and where they attend to."""

    codes: list[int]
    position: int
    lane: Lane
    weights: str = "full"


class Request:
    """One segment in flight. `advance` moves any number of them by one step."""

    @torch.no_grad()
    def __init__(
        self,
        model: UnifiedVoice,
        prefix: Tensor,
        config: GenerationConfig | None = None,
        generator: torch.Generator | None = None,
        weights: str = "full",
    ) -> None:
        """Prefill `prefix` (1, N, D) and choose the first code.

        Args:
            generator: source of all random draws; None makes one with a fresh seed. Scores are processed on its
                device, so that a CPU generator gives the same draws whatever device the model is on.
            weights: of the steps, see `quantised`; the prefix is computed with those that are loaded.

        Raises:
            GenerationError: the model gives no finite score.
            UsageError: this model, or its device, cannot have such weights.
        """
        check_weights(weights, model.device, model.config.model_dim)
        self.weights = weights
        config = _within_positions(config or GenerationConfig(), model)
        self.config = config
        self._model = model
        self._keep_states = not model.config.skips_first_mel_position
        self._taken = 0
        if generator is None:
            generator = torch.Generator()
            generator.seed()
        self.generator = generator
        self.decoder = make_decoder(config, model.config, generator)
        steps = 0 if model.bursts is not None else min(FIRST_STEPS, config.max_mel_tokens)
        self.prompt = model.prefill(prefix, config.num_beams * steps)
        self.accept(self.prompt.hidden, model.logits(self.prompt.hidden))

    @property
    def finished(self) -> bool:
        return self.decoder.finished

    def accept(self, states: Tensor, logits: Tensor) -> None:
        """Take the states (rows, D) and logits (rows, V) of the codes fed last."""
        self.decoder.accept(logits, states if self._keep_states else None)

    def feed(self) -> Feed:
        """What the next step feeds; to be asked once per step, since it moves the beams."""
        codes = self.decoder.codes
        lane = Lane(self.prompt.cache, len(codes), self.prompt.cache.branch(self.decoder.parents))
        return Feed(codes, self._model.decode_position(self.decoder.new_tokens - 1), lane, self.weights)

    def take_settled(self) -> list[int]:
        """Codes that are part of the result whatever follows and were not taken before.

        Without beams this is each code as it is drawn. Beams settle what all of them share.
        """
        return [node.code for node in self._take(self.decoder.settled())]

    def take_rest(self) -> list[int]:
        """Once finished: the codes of the result that `take_settled` has not given."""
        return [node.code for node in self._take(self.decoder.outcome().node)]

    def take_with_latents(self) -> tuple[list[int], Tensor | None]:
        """As `take_settled`, or `take_rest` once finished; with the latents (1, m, D) of a model that keeps its states
        (see `Generation`)."""
        nodes = self._take(self.decoder.outcome().node if self.finished else self.decoder.settled())
        return [node.code for node in nodes], self._latents(nodes) if nodes else None

    def _take(self, last: Node | None) -> list[Node]:
        nodes = path(last, self._taken)
        self._taken += len(nodes)
        return nodes

    def _latents(self, nodes: list[Node]) -> Tensor | None:
        if not self._keep_states:
            return None
        return torch.stack([node.state for node in nodes if node.state is not None])[None]

    def result(self) -> Generation:
        """The decoded codes, once `finished`.

        Raises:
            GenerationError: the model stopped at once.
        """
        outcome = self.decoder.outcome()
        nodes = path(outcome.node)
        if not nodes:
            raise GenerationError(
                "the model stopped before the first code; change the text, the seed, or set min_new_tokens"
            )
        codes = torch.tensor([node.code for node in nodes])
        return Generation(codes, outcome.hit_limit, outcome.score, self.prompt, self._latents(nodes))


def advance(model: UnifiedVoice, requests: Sequence[Request]) -> None:
    """Decode unfinished requests, which may be at different places and have different options, a little further.

    That is one step; on a GPU it is some steps, see `bursts`, whose codes come with the next call.
    """
    if (bursts := model.bursts) is not None:
        for error in bursts.advance(requests):
            if error is not None:
                raise error
    elif requests:
        for request, answer in zip(requests, feed(model, [r.feed() for r in requests]), strict=True):
            request.accept(*answer)


@torch.no_grad()
def feed(model: UnifiedVoice, feeds: Sequence[Feed]) -> list[tuple[Tensor, Tensor]]:
    """The states (rows, D) and logits (rows, V) of what each request feeds. A failed call may be tried again.

    Requests whose weights differ in kind go one kind after the other. So do requests that have more rows together than
    the products of a few rows take: others would give a request other last digits than it gets alone.
    """
    answers: dict[int, tuple[Tensor, Tensor]] = {}
    lengths = [f.lane.cache.length for f in feeds]
    try:
        for chosen in _portions(feeds):
            found = _feed_together(model, [feeds[index] for index in chosen], feeds[chosen[0]].weights)
            answers |= zip(chosen, found, strict=True)
    except BaseException:
        for f, length in zip(feeds, lengths, strict=True):
            f.lane.cache.length = length
        raise
    return [answers[index] for index in range(len(feeds))]


def _portions(feeds: Sequence[Feed]) -> list[list[int]]:
    """Which feeds go together: those of one kind, up to `MOST_ROWS` rows."""
    portions: list[list[int]] = []
    for kind in dict.fromkeys(f.weights for f in feeds):
        room = 0
        for index, f in enumerate(feeds):
            if f.weights != kind:
                continue
            if f.lane.rows > room:
                portions.append([])
                room = MOST_ROWS
            portions[-1].append(index)
            room -= f.lane.rows
    return portions


def _feed_together(model: UnifiedVoice, feeds: Sequence[Feed], weights: str) -> Iterator[tuple[Tensor, Tensor]]:
    fed = torch.tensor(
        [[code for f in feeds for code in f.codes], [f.position for f in feeds for _ in f.codes]], device=model.device
    )
    states = model.step(fed[0], fed[1], [f.lane for f in feeds], weights)
    rows = [f.lane.rows for f in feeds]
    return zip(states.split(rows), model.logits(states, weights).split(rows), strict=True)


def iterate_codes(
    model: UnifiedVoice, request: Request, cancel: Callable[[], bool] | None = None
) -> Iterator[list[int]]:
    """Decode `request` to its end, yielding codes as they settle (spec 03 section 7). `request.result()` follows.

    Raises:
        Cancelled: `cancel` returned true; it is asked before every step.
        GenerationError: the model gives no finite score.
    """
    while not request.finished:
        if cancel is not None and cancel():
            raise Cancelled(f"decoding was cancelled after {request.decoder.new_tokens} steps")
        if codes := request.take_settled():
            yield codes
        advance(model, [request])
    if codes := request.take_rest():
        yield codes


def generate(
    model: UnifiedVoice,
    prefix: Tensor,
    config: GenerationConfig | None = None,
    generator: torch.Generator | None = None,
    cancel: Callable[[], bool] | None = None,
    on_code: Callable[[int], None] | None = None,
) -> Generation:
    """Decode the codes of one segment.

    Args:
        prefix: (1, N, D) from `UnifiedVoice.prefix`.
        generator: source of all random draws; None for a fresh seed.
        cancel: asked before every step; true raises Cancelled.
        on_code: called with every code as soon as it is settled, in order.

    Raises:
        Cancelled: see `cancel`.
        GenerationError: no code at all, or no finite score.
    """
    request = Request(model, prefix, config, generator)
    for codes in iterate_codes(model, request, cancel):
        if on_code is not None:
            for code in codes:
                on_code(code)
    return request.result()


def _within_positions(config: GenerationConfig, model: UnifiedVoice) -> GenerationConfig:
    """`config` with at most as many codes as the model has positions for; `hit_limit` tells where that cut."""
    # The last code is never fed (its latent is the state at the one before), so the last index fed is two less.
    most = model.config.mel_positions - 1 - model.decode_position(-2)
    return dataclasses.replace(config, max_mel_tokens=min(config.max_mel_tokens, most))
