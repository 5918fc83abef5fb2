"""Shared by the text tests: one normaliser, so that each grammar loads once (and compiles once per user)."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from indextts2.text.engines import EngineLoader
from indextts2.text.normalizer import TextNormalizer
from indextts2.text.tokenizer import Tokenizer


class RememberingNormalizer(TextNormalizer):
    """Normalises each text once per test run."""

    def __init__(self, engines: EngineLoader) -> None:
        super().__init__(engines=engines)
        self.normalize = cache(super().normalize)


@pytest.fixture(scope="session")
def engines() -> EngineLoader:
    return EngineLoader()


@pytest.fixture(scope="session")
def normalizer(engines: EngineLoader) -> TextNormalizer:
    return RememberingNormalizer(engines=engines)


@pytest.fixture(scope="session")
def tokenizer(reference: Path, normalizer: TextNormalizer) -> Tokenizer:
    return Tokenizer(reference / "checkpoint_files" / "bpe.model", normalizer)


@pytest.fixture(scope="session")
def text_cases(reference: Path) -> list[dict[str, Any]]:
    return json.loads((reference / "text_cases.json").read_text(encoding="utf-8"))["cases"]
