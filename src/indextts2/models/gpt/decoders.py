"""What one request remembers while it is decoded: history, choice of the next codes, beams, finished hypotheses.

B beams, V codes, D model width. A decoder never touches the network: it is handed logits and says which codes
to feed next, and which of its rows each of them continues (spec 03 sections 7.2 to 7.4).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from indextts2.config import GenerationConfig, GPTConfig
from indextts2.errors import GenerationError
from indextts2.models.gpt.sampling import draw, forbid, process

PREFIX_ID = 1
"""The prefix counts as this id in the history of the repetition penalty, so code 1 is penalised from the start."""
IDLE_BEAM_SCORE = -1e9
"""Start score of all beams but the first: they are equal, and only one of them may be continued."""


@dataclass(frozen=True, eq=False)
class Node:
    """One code of a sequence that shares its past with others. `state` (D,) predicted the code, if states are kept."""

    code: int
    parent: Node | None
    depth: int
    state: Tensor | None

    @classmethod
    def after(cls, parent: Node | None, code: int, state: Tensor | None) -> Node:
        return cls(code, parent, 1 + (parent.depth if parent else 0), state)


def path(node: Node | None, depth: int = 0) -> list[Node]:
    """The nodes up to `node` behind the first `depth`, oldest first."""
    nodes = []
    while node is not None and node.depth > depth:
        nodes.append(node)
        node = node.parent
    return nodes[::-1]


def common_ancestor(nodes: Sequence[Node | None]) -> Node | None:
    """The last node that all paths share, None where they share none."""
    found = nodes[0]
    for other in nodes[1:]:
        while found is not other:
            if found is None or other is None:
                return None
            if found.depth >= other.depth:
                found = found.parent
            else:
                other = other.parent
    return found


@dataclass(frozen=True)
class Outcome:
    """The chosen sequence: its last node (None if empty), score, and whether it ended at the limit."""

    node: Node | None
    score: float
    hit_limit: bool


@dataclass(frozen=True)
class Candidate:
    """A possible continuation. `possible` is false for those that only fill up the beams."""

    row: int
    code: int
    total: float
    possible: bool


@dataclass(frozen=True)
class Start:
    """State of the choice: the codes to feed next, the scores of their rows so far, and the ids seen (rows, V)."""

    codes: list[int]
    totals: list[float]
    seen: Tensor


class Decoder(Protocol):
    """State of one request between two steps."""

    finished: bool
    new_tokens: int
    codes: list[int]
    """The codes to feed next, one per row."""
    parents: list[int]
    """The row of the step before that each of them continues."""

    def accept(self, logits: Tensor, states: Tensor | None) -> None:
        """Choose from the logits (rows, V) of the codes fed last; `states` (rows, D) are kept for the latents."""

    def take(self, candidates: Sequence[Candidate], states: Tensor | None) -> None:
        """`accept` where something else has chosen the candidates, and keeps the history, from `start` on."""

    def start(self) -> Start:
        """What something else needs to go on choosing."""

    def settled(self) -> Node | None:
        """The last node that will be part of the outcome whatever follows."""

    def outcome(self) -> Outcome:
        """The chosen sequence, once `finished`."""


def make_decoder(config: GenerationConfig, gpt: GPTConfig, generator: torch.Generator) -> Decoder:
    """The decoder that `config` asks for. It works on the device of `generator`, whose draws it alone makes."""
    return BeamDecoder(config, gpt, generator) if config.num_beams > 1 else SingleDecoder(config, gpt, generator)


class _History:
    """Ids that each row has seen, and the scores that follow from them."""

    def __init__(self, rows: int, config: GenerationConfig, gpt: GPTConfig, device: torch.device) -> None:
        self._config = config
        self._gpt = gpt
        self.seen = torch.zeros(rows, gpt.number_mel_codes, dtype=torch.bool, device=device)
        self.seen[:, [PREFIX_ID, gpt.start_mel_token]] = True

    def scores(self, scores: Tensor, new_tokens: int) -> Tensor:
        """Processed scores (B, V). Special ids other than the stop token can never be chosen.

        They are removed last, so that all others keep the scores that the unrestricted model gives them.
        """
        processed = process(scores, self.seen, self._config, new_tokens, self._gpt.stop_mel_token)
        return forbid(processed, self._gpt.start_mel_token, self._gpt.stop_mel_token)

    def extend(self, parents: list[int], codes: list[int]) -> None:
        if len(parents) > 1:
            self.seen = self.seen[parents]
        self.seen[list(range(len(codes))), codes] = True


class SingleDecoder:
    """Greedy or sampled continuation of one sequence. Its score is the sum of processed log-probabilities."""

    def __init__(self, config: GenerationConfig, gpt: GPTConfig, generator: torch.Generator) -> None:
        self._config = config
        self._stop = gpt.stop_mel_token
        self._generator = generator
        self._history = _History(1, config, gpt, generator.device)
        self._last: Node | None = None
        self._score = 0.0
        self._stopped = False
        self.finished = False
        self.new_tokens = 0
        self.codes: list[int] = []
        self.parents = [0]

    def accept(self, logits: Tensor, states: Tensor | None) -> None:
        scores = self._history.scores(logits.to(self._generator.device), self.new_tokens)[0]
        code, log_probability = self._choose(scores)
        self.take([Candidate(0, code, log_probability, True)], states)
        if not self._stopped:
            self._history.extend([0], [code])

    def take(self, candidates: Sequence[Candidate], states: Tensor | None) -> None:
        code, log_probability = candidates[0].code, candidates[0].total
        _require_finite(log_probability, self.new_tokens)
        self._score += log_probability
        self.new_tokens += 1
        self._stopped = code == self._stop
        self.finished = self._stopped or self.new_tokens == self._config.max_mel_tokens
        if not self._stopped:
            self._last = Node.after(self._last, code, None if states is None else states[0])
            self.codes = [code]

    def start(self) -> Start:
        return Start(self.codes, [0.0], self._history.seen)

    def _choose(self, scores: Tensor) -> tuple[int, float]:
        if self._config.do_sample:
            index, probability = _draw(scores, 1, self._generator, self.new_tokens)
            return int(index), math.log(max(float(probability), torch.finfo(torch.float32).tiny))
        code = int(scores.argmax())
        return code, float(scores[code] - scores.logsumexp(dim=0))

    def settled(self) -> Node | None:
        return self._last

    def outcome(self) -> Outcome:
        return Outcome(self._last, self._score, hit_limit=not self._stopped)


@dataclass(frozen=True)
class Hypothesis:
    """A finished sequence with its length-normalised score."""

    node: Node | None
    score: float


class Hypotheses:
    """The best finished sequences, at most `size` of them."""

    def __init__(self, size: int, length_penalty: float) -> None:
        self._size = size
        self._length_penalty = length_penalty
        self._worst = 1e9
        self._stored: list[Hypothesis] = []

    def __iter__(self) -> Iterator[Hypothesis]:
        return iter(self._stored)

    def _normalised(self, total: float, length: int) -> float:
        return float(total / length**self._length_penalty)

    def add(self, node: Node | None, total: float, length: int) -> None:
        """Store a sequence whose scores sum to `total`, unless `size` better ones are known."""
        score = self._normalised(total, length)
        if len(self._stored) >= self._size and score <= self._worst:
            return
        self._stored.append(Hypothesis(node, score))
        if len(self._stored) > self._size:
            self._stored.remove(min(self._stored, key=lambda hypothesis: hypothesis.score))
        self._worst = min(hypothesis.score for hypothesis in self._stored)

    def unbeatable(self, best_total: float, length: int) -> bool:
        """Whether no sequence of `length` codes with at most `best_total` can enter."""
        return len(self._stored) >= self._size and self._worst >= self._normalised(best_total, length)

    def best(self) -> Hypothesis:
        """The highest score; of equal ones the one that came last."""
        return max(reversed(self._stored), key=lambda hypothesis: hypothesis.score)


class BeamDecoder:
    """Beam search and beam sampling. Scores are sums of processed log-probabilities, temperature included."""

    def __init__(self, config: GenerationConfig, gpt: GPTConfig, generator: torch.Generator) -> None:
        self._config = config
        self._stop = gpt.stop_mel_token
        self._generator = generator
        beams = config.num_beams
        self._history = _History(beams, config, gpt, generator.device)
        self._nodes: list[Node | None] = [None] * beams
        self._totals = [0.0] + [IDLE_BEAM_SCORE] * (beams - 1)
        self._hypotheses = Hypotheses(beams, config.length_penalty)
        self._done = False
        self.finished = False
        self.new_tokens = 0
        self.codes: list[int] = []
        self.parents = list(range(beams))

    def accept(self, logits: Tensor, states: Tensor | None) -> None:
        beams = self._config.num_beams
        log_probabilities = logits.to(self._generator.device).log_softmax(dim=-1)
        if len(log_probabilities) == 1:  # the prefix, equal for all beams
            log_probabilities = log_probabilities.expand(beams, -1)
            states = None if states is None else states.expand(beams, -1)
        scores = self._history.scores(log_probabilities, self.new_tokens)
        totals = torch.tensor(self._totals, dtype=scores.dtype, device=scores.device)
        self.take(self._candidates(scores + totals[:, None]), states)
        self._history.extend(self.parents, self.codes)

    def take(self, candidates: Sequence[Candidate], states: Tensor | None) -> None:
        _require_finite(candidates[0].total, self.new_tokens)
        running = self._sort_out(candidates)
        self.new_tokens += 1
        self._done = self._hypotheses.unbeatable(candidates[0].total, self.new_tokens)
        self.finished = self._done or self.new_tokens == self._config.max_mel_tokens
        self._continue(running, states)

    def _candidates(self, totals: Tensor) -> list[Candidate]:
        """The 2 B continuations to look at, best first."""
        count, flat = 2 * self._config.num_beams, totals.flatten()
        if self._config.do_sample:
            index, probabilities = _draw(flat, count, self._generator, self.new_tokens)
            order = flat[index].sort(descending=True, stable=True).indices
            index, possible = index[order], (probabilities[order] > 0).tolist()
        else:
            index = flat.topk(count).indices
            possible = torch.isfinite(flat[index]).tolist()
        rows, codes = index // totals.shape[1], index % totals.shape[1]
        values = zip(rows.tolist(), codes.tolist(), flat[index].tolist(), possible, strict=True)
        return [Candidate(*value) for value in values]

    def _sort_out(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Store the finished ones; return those that run on, one per beam."""
        running: list[Candidate] = []
        for rank, candidate in enumerate(candidates):
            if candidate.code == self._stop:
                if candidate.possible and rank < self._config.num_beams:
                    self._hypotheses.add(self._nodes[candidate.row], candidate.total, self.new_tokens + 1)
            else:
                running.append(candidate)
                if len(running) == self._config.num_beams:
                    break
        return running

    def _continue(self, running: list[Candidate], states: Tensor | None) -> None:
        self.parents = [candidate.row for candidate in running]
        self.codes = [candidate.code for candidate in running]
        self._totals = [candidate.total for candidate in running]
        self._nodes = [
            Node.after(self._nodes[candidate.row], candidate.code, None if states is None else states[candidate.row])
            for candidate in running
        ]

    def start(self) -> Start:
        return Start(self.codes, self._totals, self._history.seen)

    def settled(self) -> Node | None:
        stored = [hypothesis.node for hypothesis in self._hypotheses]
        return common_ancestor(stored if self._done else [*self._nodes, *stored])

    def outcome(self) -> Outcome:
        if not self._done:
            for node, total in zip(self._nodes, self._totals, strict=True):
                self._hypotheses.add(node, total, self.new_tokens)
        self._done = True
        best = self._hypotheses.best()
        length = best.node.depth if best.node else 0
        return Outcome(best.node, best.score, hit_limit=length == self._config.max_mel_tokens)


def _draw(scores: Tensor, count: int, generator: torch.Generator, step: int) -> tuple[Tensor, Tensor]:
    try:
        return draw(scores, count, generator)
    except RuntimeError as error:
        raise GenerationError(
            f"no code can be drawn at step {step}: the scores hold NaN or leave nothing ({error}); "
            "use float32 weights or wider sampling options"
        ) from error


def _require_finite(score: float, step: int) -> None:
    if not math.isfinite(score):
        raise GenerationError(
            f"the best code at step {step} has the score {score}; the weights are damaged, the precision is too low "
            "(use float32), or the sampling options leave only the start code"
        )
