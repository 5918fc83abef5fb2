"""Every text of the reference: normalised text, language, pieces, ids and segments are equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from indextts2.text.normalizer import TextNormalizer
from indextts2.text.segmenter import split_segments
from indextts2.text.tokenizer import Tokenizer

Case = dict[str, Any]


def differences(cases: list[Case], key: str, compute: Callable[[Case], object]) -> list[tuple[str, object, object]]:
    assert cases
    results = [(case["text"], compute(case), case[key]) for case in cases]
    return [result for result in results if result[1] != result[2]]


def test_normalized_text(text_cases: list[Case], normalizer: TextNormalizer) -> None:
    assert differences(text_cases, "normalized", lambda case: normalizer.normalize(case["text"])) == []


def test_language(text_cases: list[Case], normalizer: TextNormalizer) -> None:
    assert differences(text_cases, "use_chinese", lambda case: normalizer.use_chinese(case["text"])) == []


def test_pieces(text_cases: list[Case], tokenizer: Tokenizer) -> None:
    assert differences(text_cases, "pieces", lambda case: tokenizer.tokenize(case["text"])) == []


def test_ids(text_cases: list[Case], tokenizer: Tokenizer) -> None:
    assert differences(text_cases, "ids", lambda case: tokenizer.to_ids(case["pieces"])) == []


def test_segments_of_120_and_40(text_cases: list[Case]) -> None:
    assert differences(text_cases, "segments_120", lambda case: split_segments(case["pieces"], 120)) == []
    assert differences(text_cases, "segments_40", lambda case: split_segments(case["pieces"], 40)) == []


def test_texts_of_the_golden_runs(reference: Path, tokenizer: Tokenizer) -> None:
    texts = json.loads((reference / "inputs" / "texts.json").read_text(encoding="utf-8"))
    for case in texts.values():
        pieces = tokenizer.tokenize(case["text"])
        segments = split_segments(pieces, case["max_text_tokens_per_segment"])
        assert (pieces, tokenizer.to_ids(pieces), segments) == (case["pieces"], case["ids"], case["segments"])
        assert [tokenizer.to_ids(segment) for segment in segments] == case["segment_ids"]
