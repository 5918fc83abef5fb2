from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from indextts2.text import grammars
from indextts2.text.cache import default_cache_dir
from indextts2.text.engines import WeTextProcessingEngine
from indextts2.text.grammars import GRAMMAR_FILES, grammar_folder, load_grammar, make_grammar

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="WeTextProcessing serves Linux only")


class FakeTransducer:
    def __init__(self, fail: bool = False) -> None:
        self.fail = fail

    def write(self, path: str) -> None:
        Path(path).write_bytes(b"half" if self.fail else b"whole")
        if self.fail:
            raise KeyboardInterrupt


def fake_library(monkeypatch: pytest.MonkeyPatch, fail: bool = False) -> list[Path]:
    """Stand in for the library's compiler; the second transducer may fail to be written."""
    places: list[Path] = []

    def make(workplace: Path) -> SimpleNamespace:
        places.append(workplace)
        return SimpleNamespace(tagger=FakeTransducer(), verbalizer=FakeTransducer(fail))

    monkeypatch.setitem(grammars._PROCESSORS, "zh", make)
    return places


def files_under(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_grammar_is_made_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = fake_library(monkeypatch)
    read: list[Path] = []
    monkeypatch.setattr(grammars, "read_grammar", lambda folder, _: read.append(folder))
    for _ in range(2):
        load_grammar("zh", tmp_path)
    assert len(places) == 1
    assert not places[0].exists()
    assert read == [grammar_folder("zh", tmp_path)]
    assert files_under(tmp_path) == sorted(GRAMMAR_FILES)


def test_an_interruption_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_library(monkeypatch, fail=True)
    with pytest.raises(KeyboardInterrupt):
        load_grammar("zh", tmp_path)
    assert files_under(tmp_path) == ["tagger.fst"]
    assert [path.read_bytes() for path in tmp_path.rglob("*.fst")] == [b"whole"]


def test_without_a_usable_cache_the_grammar_serves_this_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_library(monkeypatch)
    (tmp_path / "file").write_text("in the way")
    assert isinstance(load_grammar("zh", tmp_path / "file").tagger, FakeTransducer)
    assert "cannot keep a grammar" in caplog.text


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_damaged_grammar_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, size: int
) -> None:
    load_grammar("en", default_cache_dir())
    folder = grammar_folder("en", tmp_path)
    shutil.copytree(grammar_folder("en", default_cache_dir()), folder)
    os.truncate(folder / GRAMMAR_FILES[0], size)
    made = SimpleNamespace()
    monkeypatch.setattr(grammars, "make_grammar", lambda *_: made)
    assert load_grammar("en", tmp_path) is made
    assert "is damaged" in caplog.text


def test_the_kept_grammar_reads_as_the_library_does(tmp_path: Path) -> None:
    logging.getLogger("wetext").disabled = True
    from tn.english.normalizer import Normalizer

    library = Normalizer(overwrite_cache=False)
    made = WeTextProcessingEngine("en", make_grammar(grammar_folder("en", tmp_path), "en"))
    kept = WeTextProcessingEngine("en", load_grammar("en", tmp_path))
    for text in (
        "Dr. Smith lives on 5th St. in Boston, MA, since Jan. 3rd, 1999.",
        "It costs $1,299.99 for 3 3/4 lbs; call 555-123-4567 before 10:30 a.m.!",
        "Chapter IV of A.B.C. (see www.example.com) has 1,024 words per page.",
    ):
        assert library.normalize(text) == made.normalize(text) == kept.normalize(text)


def test_reading_a_kept_grammar_does_not_import_its_rules() -> None:
    load_grammar("en", default_cache_dir())
    code = """
import sys
from indextts2.text.normalizer import TextNormalizer
assert TextNormalizer().normalize("I have 3 apples.") == "I have three apples."
rules = [name for name in sys.modules if name.startswith(("tn.english", "tn.chinese"))]
assert not rules, rules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
