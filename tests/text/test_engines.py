from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from indextts2.errors import TextError
from indextts2.text.cache import default_cache_dir
from indextts2.text.engines import EngineLoader, WeTextEngine, load_engine
from indextts2.text.language import Language

linux_only = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="WeTextProcessing serves Linux only")


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=120
    )


@linux_only
def test_english_neither_loads_nor_compiles_chinese_and_prints_nothing(tmp_path: Path) -> None:
    code = """
import sys
from indextts2.text.normalizer import TextNormalizer
import indextts2.text.tokenizer
heavy = {"pynini", "tn", "wetext", "sentencepiece", "torch", "yaml"} & set(sys.modules)
assert not heavy, heavy
normalizer = TextNormalizer()
assert normalizer.normalize("I have 3 apples.") == "I have three apples."
assert normalizer.normalize("\\n3 a") == " 3 a"
chinese = [name for name in sys.modules if name.startswith("tn.chinese")]
assert not chinese, chinese
"""
    process = run_python(code, INDEXTTS2_CACHE=str(tmp_path / "cache"))
    assert (process.returncode, process.stdout) == (0, ""), process.stderr
    # The one line is Python's own handler of last resort showing our warning.
    assert process.stderr.splitlines() == [
        "the English grammar has no reading for '\\n3 a' (4 characters); its numbers and abbreviations stay as written"
    ]
    kept = [path.name for path in (tmp_path / "cache" / "grammars").iterdir()]
    assert len(kept) == 1 and kept[0].startswith("en-")


def test_one_language_does_not_wait_for_the_other() -> None:
    compiling, done = threading.Event(), threading.Event()
    loads: list[Language] = []

    def load(language: Language, _: Path) -> SimpleNamespace:
        loads.append(language)
        if language == "zh":
            compiling.set()
            assert done.wait(20)
        return SimpleNamespace(language=language)

    loader = EngineLoader(load=load)
    threads = [threading.Thread(target=loader.get, args=("zh",)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert compiling.wait(20)
    assert loader.get("en").language == "en"
    done.set()
    for thread in threads:
        thread.join(20)
    assert sorted(loads) == ["en", "zh"], "each grammar loads once"


@linux_only
@pytest.mark.slow
def test_two_processes_compile_into_one_cache_while_a_third_is_killed(tmp_path: Path) -> None:
    code = "from indextts2.text.normalizer import TextNormalizer as T; print(ascii(T().normalize('5个')), end='')"
    environment = {**os.environ, "INDEXTTS2_CACHE": str(tmp_path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, stderr=-1, text=True)
        for _ in range(3)
    ]
    time.sleep(3)
    processes[2].kill()
    for process in processes[:2]:
        assert process.communicate(timeout=300) == (ascii("五个"), "")
    processes[2].communicate()
    start = time.monotonic()
    assert run_python(code, INDEXTTS2_CACHE=str(tmp_path)).stdout == ascii("五个")
    logging.getLogger(__name__).info("with the cache: %.1f s", time.monotonic() - start)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tn.english.normalizer", None)
    monkeypatch.setitem(sys.modules, "wetext", None)
    with pytest.raises(TextError, match=r"pip install We?[tT]ext|pip install wetext"):
        load_engine("en", tmp_path)


@pytest.mark.parametrize(
    ("system", "environment", "expected"),
    [
        ("Linux", {"XDG_CACHE_HOME": "/x"}, "/x/indextts2"),
        ("Linux", {"HOME": "/h"}, "/h/.cache/indextts2"),
        ("Darwin", {"HOME": "/h"}, "/h/Library/Caches/indextts2"),
        ("Windows", {"LOCALAPPDATA": "/l"}, "/l/indextts2/Cache"),
        ("Darwin", {"HOME": "/h", "INDEXTTS2_CACHE": "/own"}, "/own"),
    ],
)
def test_the_cache_directory(
    monkeypatch: pytest.MonkeyPatch, system: str, environment: dict[str, str], expected: str
) -> None:
    for name in ("INDEXTTS2_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("platform.system", lambda: system)
    assert default_cache_dir() == Path(expected)


@pytest.mark.parametrize(
    ("language", "text", "expected"),
    [
        ("zh", "你好，世界", "你好,世界"),
        ("zh", "電話ＡＢ，2025/09/08", "电话AB,二零二五年九月八日"),
        ("en", "test@abc.com has 3", "test at abc dot com has three"),
        ("en", 'He said, "no."', 'He said, "no."'),
        ("en", "  ", ""),
    ],
)
def test_wetext(language: Language, text: str, expected: str) -> None:
    pytest.importorskip("wetext", reason="wetext serves other platforms than Linux")
    assert WeTextEngine(language).normalize(text) == expected
