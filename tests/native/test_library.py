"""Finding the library, doing without it, and running its functions on threads."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from indextts2.models.vocoder.activation import Activation
from indextts2.native import library

ROOT = Path(__file__).parents[2]


@pytest.fixture
def fresh():
    """`native` looks again, and once more after the test."""
    library.native.cache_clear()
    yield
    library.native.cache_clear()


def test_loads_where_it_was_built():
    if not library.LIBRARY_FILE.is_file():
        pytest.skip("the package was installed without a C compiler")
    found = library.native()
    assert found.library is not None and found.status.startswith("in use, ")


@pytest.mark.parametrize("reason", ["switched off", "not built", "not usable", "other sources"])
def test_without_the_library_pytorch_computes_and_it_is_said_once(
    reason: str, fresh: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    if reason == "switched off":
        monkeypatch.setenv(library.SWITCH_VARIABLE, "0")
    elif reason == "other sources":
        if not library.LIBRARY_FILE.is_file():
            pytest.skip("the package was installed without a C compiler")
        monkeypatch.setattr(library, "INTERFACE_VERSION", -1)
    else:
        monkeypatch.setattr(library, "LIBRARY_FILE", tmp_path / "_kernels.so")
        if reason == "not usable":
            library.LIBRARY_FILE.write_text("no library")
    activation, x = Activation(3, True), torch.randn(2, 3, 50)
    with caplog.at_level(logging.INFO, "indextts2"), torch.no_grad():
        y = activation(x)
        activation(x)
    assert [reason in r.message and "PyTorch computes everything" in r.message for r in caplog.records] == [True]
    with torch.no_grad():
        expected = activation.double()(x.double()).float()
    torch.testing.assert_close(y, expected, rtol=0, atol=1e-6)


def test_only_plain_float32_tensors_in_memory():
    x = torch.randn(1, 2, 8)
    available = library.native().library is not None
    assert library.usable(x, torch.nn.Parameter(x)) is available
    assert not library.usable(x.double()) and not library.usable(x.to("meta")) and not library.usable(x.half())
    assert not library.usable(x, x.double())


class Counter:
    """A kernel in Python: counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, task: object) -> None:
        self.calls += 1


def test_pool_stands_in_for_a_missing_openmp_runtime(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library, "_openmp", lambda: None)
    counter = Counter()
    library.run(counter, library.Queue(1, 0), 3)
    assert counter.calls == 3


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_sources_compile_for_a_plain_processor_without_warnings(tmp_path: Path):
    sources = (ROOT / "src/indextts2/native").glob("*.c")
    flags = ["-std=c11", "-O1", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, *map(str, sources), "-o", str(tmp_path / "kernels.so")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("compiler", ["", "/nonexistent/cc"])
def test_builds_and_installs_with_and_without_a_compiler(compiler: str, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "src", source / "src", ignore=shutil.ignore_patterns("_kernels.*", "*.egg-info", "assets"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    command = "from setuptools.build_meta import build_wheel; print(build_wheel('wheels'))"
    environment = {**os.environ, **({"CC": compiler} if compiler else {})}
    done = subprocess.run([sys.executable, "-c", command], cwd=source, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    wheel = source / "wheels" / done.stdout.splitlines()[-1]
    assert "-py3-none-" in wheel.name
    listing = subprocess.run([sys.executable, "-m", "zipfile", "-l", str(wheel)], capture_output=True, text=True).stdout
    assert "native/library.py" in listing
    assert ("_kernels" in listing) is (not compiler and shutil.which("cc") is not None)
