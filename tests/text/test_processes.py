"""Grammars in processes of their own: the same readings, and Python's lock stays free meanwhile."""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import Any

import pytest

from indextts2.errors import TextError
from indextts2.text.cache import default_cache_dir
from indextts2.text.engines import EngineLoader
from indextts2.text.normalizer import TextNormalizer
from indextts2.text.processes import ProcessEngine


@pytest.fixture(scope="module")
def english() -> ProcessEngine:
    return ProcessEngine("en", default_cache_dir())


TEXTS = [
    "It costs $3.50 on 12/05/2021.",
    "Dr. Smith's 2nd house, 3 kg",
    'line\nbreak and "quotes" and \\ and naïve — 100 %',
    "today, " * 150,
    " a  b ",
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_readings_are_the_same(text: str, engines: EngineLoader) -> None:
    here, elsewhere = TextNormalizer(engines=engines), TextNormalizer(engines=engines)
    elsewhere.read_in_processes()
    assert elsewhere.normalize(text) == here.normalize(text)


def test_the_reference_texts_read_the_same(text_cases: list[dict[str, Any]], engines: EngineLoader) -> None:
    normalizer = TextNormalizer(engines=engines.in_processes())
    wrong = [case["text"] for case in text_cases if normalizer.normalize(case["text"]) != case["normalized"]]
    assert text_cases and not wrong


def test_asking_again_changes_nothing(engines: EngineLoader) -> None:
    loader = engines.in_processes()
    assert loader is not engines
    assert loader.in_processes() is loader


def test_text_without_a_reading_is_an_error_and_the_process_goes_on(english: ProcessEngine) -> None:
    process = english.process_id
    with pytest.raises(TextError, match="has no reading"):
        english.normalize("\n3 a")
    assert english.normalize("3 apples") == "three apples"
    assert english.process_id == process


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_a_process_that_dies_is_replaced() -> None:
    engine = ProcessEngine("en", default_cache_dir())
    process = engine.process_id
    os.kill(process, signal.SIGINT)  # of a terminal, for the program that asks
    assert engine.normalize("3 apples") == "three apples"
    assert engine.process_id == process
    os.kill(process, signal.SIGKILL)
    assert engine.normalize("3 apples") == "three apples"
    assert engine.process_id != process


@pytest.mark.skipif(sys.platform == "win32", reason="no such signals")
def test_the_process_ends_with_its_engine() -> None:
    engine = ProcessEngine("en", default_cache_dir())
    process = engine.process_id
    del engine
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_threads_take_turns(english: ProcessEngine) -> None:
    found: dict[int, str] = {}

    def read(number: int) -> None:
        found[number] = english.normalize(f"{number} apples")

    threads = [threading.Thread(target=read, args=(number,)) for number in range(2, 8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    words = ["two", "three", "four", "five", "six", "seven"]
    assert [found[number] for number in range(2, 8)] == [f"{word} apples" for word in words]
