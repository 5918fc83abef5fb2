"""The cores are divided among pieces of work, for each thread on its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
import torch

from indextts2.errors import UsageError
from indextts2.inference import lanes
from indextts2.inference.lanes import lane_count, use_threads
from indextts2.inference.openmp import release_workers

T = TypeVar("T")
needs_openmp = pytest.mark.skipif(not lanes.divisible(), reason="torch does not use OpenMP")


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def in_thread(work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


@needs_openmp
def test_a_thread_is_narrowed_and_no_other() -> None:
    torch.set_num_threads(3)

    def narrowed() -> int:
        use_threads(1, 3)
        return torch.get_num_threads()

    assert in_thread(narrowed) == 1
    assert torch.get_num_threads() == 3
    assert in_thread(torch.get_num_threads) == 3
    use_threads(2, 3)
    assert torch.get_num_threads() == 2
    assert in_thread(torch.get_num_threads) == 3
    use_threads(3, 3)
    assert torch.get_num_threads() == 3


def test_as_many_lanes_as_cores_but_no_more_than_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "divisible", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    cpu = torch.device("cpu")
    assert lane_count(None, cpu, 4) == 4
    assert lane_count(None, cpu, 16) == 8
    assert lane_count(None, torch.device("cuda"), 4) == 1
    assert lane_count(2, torch.device("cuda"), 4) == 2
    assert lane_count(5, cpu, 4) == 4
    with pytest.raises(UsageError, match="lanes must be at least 1, not 0"):
        lane_count(0, cpu, 4)


def test_without_openmp_there_is_one_lane_and_nothing_to_divide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "divisible", lambda: False)
    before = torch.get_num_threads()
    assert lane_count(None, torch.device("cpu"), 4) == 1
    use_threads(before + 1, before)
    assert torch.get_num_threads() == before


def test_workers_come_back_when_they_are_needed() -> None:
    torch.set_num_threads(2)
    x = torch.randn(400, 400)
    expected = x @ x
    release_workers()
    assert torch.equal(x @ x, expected)
    release_workers()
    assert torch.get_num_threads() == 2
