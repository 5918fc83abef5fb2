"""Score processors of the decoder, in their order (spec 03 section 7.1). All are pure functions.

B rows (beams), V codes. Scores are float32 (B, V): raw logits with one beam, log-probabilities with several.
Removed entries become -inf; `keep` is the least number of entries that each row retains.
"""

from __future__ import annotations

import torch
from torch import Tensor

from indextts2.config import GenerationConfig

MINUS_INFINITY = float("-inf")


def repetition_penalty(scores: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Push down every id that `seen` (B, V) bool marks: negative scores times `penalty`, others divided by it."""
    if penalty == 1.0:
        return scores
    return torch.where(seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)


def forbid(scores: Tensor, first: int, end: int) -> Tensor:
    """Remove the ids first..end-1."""
    return scores.index_fill(1, torch.arange(first, end, device=scores.device), MINUS_INFINITY)


def typical(scores: Tensor, mass: float, keep: int) -> Tensor:
    """Locally typical sampling (Meister et al. 2022): keep the ids whose surprise is closest to the entropy,
    until their probability reaches `mass`. Ids as far from it as the last one kept stay too."""
    log_probabilities = scores.log_softmax(dim=-1)
    probabilities = log_probabilities.exp()
    entropy = torch.special.entr(probabilities).sum(dim=-1, keepdim=True)
    distance, order = (-log_probabilities - entropy).abs().sort(dim=-1)
    cumulative = probabilities.gather(1, order).cumsum(dim=-1)
    last = (cumulative < mass).sum(dim=-1, keepdim=True).clamp(max=scores.shape[1] - 1)
    removed = distance > distance.gather(1, last)
    removed[:, :keep] = False
    return scores.masked_fill(removed.scatter(1, order, removed), MINUS_INFINITY)


def top_k(scores: Tensor, k: int, keep: int) -> Tensor:
    """Keep the k highest scores and those equal to the k-th."""
    threshold = scores.topk(min(max(k, keep), scores.shape[1])).values[:, -1:]
    return scores.masked_fill(scores < threshold, MINUS_INFINITY)


def top_p(scores: Tensor, p: float, keep: int) -> Tensor:
    """Nucleus sampling: remove the least probable ids as long as together they have at most 1 - p."""
    if p >= 1.0:
        return scores
    # Only entries that are left matter; after top-k they are few, and a partial sort is far cheaper than a full one.
    # On a GPU it is cheaper than waiting for their number.
    left = scores.shape[1] if not scores.is_cpu else int(torch.isfinite(scores).sum(dim=-1).max())
    values, order = scores.topk(max(left, min(keep, scores.shape[1])))
    tail = values.softmax(dim=-1).flip(-1).cumsum(dim=-1).flip(-1)
    removed = tail <= 1.0 - p
    removed[:, :keep] = False
    return torch.full_like(scores, MINUS_INFINITY).scatter(1, order, values.masked_fill(removed, MINUS_INFINITY))


def min_p(scores: Tensor, p: float, keep: int) -> Tensor:
    """Remove ids that are less probable than p times the most probable one."""
    if p <= 0.0:
        return scores
    probabilities = scores.softmax(dim=-1)
    removed = probabilities < p * probabilities.amax(dim=-1, keepdim=True)
    best = scores.topk(min(keep, scores.shape[1])).indices
    return scores.masked_fill(removed.scatter(1, best, False), MINUS_INFINITY)


def process(
    scores: Tensor, seen: Tensor, config: GenerationConfig, new_tokens: int | Tensor, stop_token: int
) -> Tensor:
    """All processors that `config` asks for.

    Args:
        scores: (B, V) float32.
        seen: (B, V) bool, ids in the history of each row.
        config: with `do_sample` False, only the repetition penalty and the minimum length apply.
        new_tokens: codes generated before this step; as a tensor (B, 1) for each row.
        stop_token: id that the minimum length forbids.
    """
    keep = 2 if config.num_beams > 1 else 1
    scores = repetition_penalty(scores, seen, config.repetition_penalty)
    if isinstance(new_tokens, Tensor):
        if config.min_new_tokens:
            early = forbid(scores, stop_token, stop_token + 1)
            scores = torch.where(new_tokens < config.min_new_tokens, early, scores)
    elif new_tokens < config.min_new_tokens:
        scores = forbid(scores, stop_token, stop_token + 1)
    if not config.do_sample:
        return scores
    if config.typical_sampling:
        scores = typical(scores, config.typical_mass, keep)
    if config.temperature != 1.0:
        scores = scores / config.temperature
    if config.top_k > 0:
        scores = top_k(scores, config.top_k, keep)
    return min_p(top_p(scores, config.top_p, keep), config.min_p, keep)


def draw(scores: Tensor, count: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """`count` distinct indices of `scores` (n,), drawn by their softmax, with their probabilities (count,).

    Where fewer have a probability above zero, indices of probability zero fill up.
    """
    probabilities = scores.softmax(dim=-1)
    index = torch.multinomial(probabilities, count, generator=generator)
    return index, probabilities[index]


def race(probabilities: Tensor, waits: Tensor, count: int) -> Tensor:
    """`count` distinct indices (B, count) drawn by `probabilities` (B, n).

    They are those whose `waits` (B, n), exponential variables of mean 1, are the shortest when divided by the
    probability. From the same draws of a generator this gives what `draw` gives, and nothing waits for the device.
    """
    speeds = probabilities / waits
    return speeds.argmax(dim=-1, keepdim=True) if count == 1 else speeds.topk(count).indices
