"""Which graphs are recorded and kept, with a stand-in for the recording."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from indextts2.models import graphs as graphs_module
from indextts2.models.graphs import Graphs, bucket


class Recording:
    """Replays the function itself."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.replay = function


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Callable[[], None]]:
    """The functions that were recorded."""
    functions: list[Callable[[], None]] = []

    def record(_: Graphs, function: Callable[[], None]) -> Recording:
        functions.append(function)
        return Recording(function)

    monkeypatch.setattr(Graphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
    return functions


def test_buckets() -> None:
    assert [bucket(n, 1) for n in (0, 1, 2, 3, 4, 5, 64, 65)] == [1, 1, 2, 4, 4, 8, 64, 128]
    assert [bucket(n, 512) for n in (1, 512, 513, 2048)] == [512, 512, 1024, 2048]


def test_a_cpu_runs_the_function_itself(recorded: list[Callable[[], None]]) -> None:
    graphs, runs = Graphs(torch.device("cpu")), []
    graphs.prepare("a", lambda: runs.append("prepared"))
    assert not runs and not recorded
    graphs.run("a", lambda: runs.append("run"))
    assert runs == ["run"]


def test_each_key_is_recorded_once(recorded: list[Callable[[], None]]) -> None:
    graphs, runs = Graphs(torch.device("cuda")), []
    for key in "abab":
        graphs.prepare(key, lambda key=key: runs.append(key))
        graphs.run(key, lambda: runs.append("not the graph"))
    assert runs == ["a", "b", "a", "b"] and len(recorded) == 2
    graphs.clear()
    graphs.prepare("a", lambda: None)
    assert len(recorded) == 3


def test_the_graph_not_used_for_longest_makes_room(
    recorded: list[Callable[[], None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs_module, "MOST_GRAPHS", 2)
    graphs = Graphs(torch.device("cuda"))
    for key in ("a", "b", "a", "c", "a"):  # c takes the place of b
        graphs.prepare(key, lambda: None)
        graphs.run(key, lambda: None)
    assert len(recorded) == 3
    graphs.prepare("b", lambda: None)
    assert len(recorded) == 4
