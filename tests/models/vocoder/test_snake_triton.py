"""The Triton kernel of the activation: on a GPU if there is one, else by Triton's interpreter on the CPU."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from indextts2.models.vocoder import activation

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Around the reach of the filters and the edges of blocks.
LENGTHS = [*range(1, 14), 41, 511, 512, 513, 1030]


@pytest.fixture(scope="module")
def kernel() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE == "cpu":
            patch.setenv("TRITON_INTERPRET", "1")  # asked when kernels are defined, and when they run
        pytest.importorskip("triton", reason="Triton is not installed")
        yield importlib.import_module("indextts2.models.vocoder.snake_triton")


def inputs(length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x (2,3,length), frequency and magnitude (3,1)."""
    generator = torch.Generator().manual_seed(length)
    x = 3 * torch.randn(2, 3, length, generator=generator)
    frequency, magnitude = (torch.rand(3, 1, generator=generator) * 3 + 0.2 for _ in range(2))
    return x.to(DEVICE), frequency.to(DEVICE), magnitude.to(DEVICE)


@pytest.mark.parametrize("length", LENGTHS)
def test_equals_pytorch(kernel: ModuleType, length: int) -> None:
    tensors = inputs(length)
    actual = kernel.snake_forward(*tensors, tuple(activation.kaiser_sinc_filter()))
    expected = activation.anti_aliased_snake(*(t.double().cpu() for t in tensors))
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.double().cpu(), expected, rtol=1e-6, atol=1e-5)


def test_inputs_with_gaps(kernel: ModuleType) -> None:
    x, frequency, magnitude = inputs(40)
    taps = tuple(activation.kaiser_sinc_filter())
    wide = torch.stack((x, -x), dim=-1)[..., 0]
    assert not wide.is_contiguous()
    expected = kernel.snake_forward(x, frequency, magnitude, taps)
    assert torch.equal(kernel.snake_forward(wide, frequency, magnitude, taps), expected)


def test_what_it_cannot_compute(kernel: ModuleType) -> None:
    x, frequency, magnitude = inputs(8)
    assert kernel.usable(x, frequency, magnitude)
    assert not kernel.usable(x.double(), frequency, magnitude)
    assert not kernel.usable(x[..., :0], frequency, magnitude)


COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from indextts2.models.vocoder.snake_triton import BLOCK_SAMPLES, _forward
types = dict.fromkeys(("x", "y", "frequencies", "magnitudes", "taps"), "*fp32")
types |= {"channels": "i32", "length": "i32", "block": "constexpr"}
source = triton.compiler.ASTSource(fn=_forward, signature=types, constexprs={"block": BLOCK_SAMPLES})
print("cubin" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm)
"""


def test_it_compiles_for_a_gpu(tmp_path: Path) -> None:
    """Without one. In a process of its own, where kernels are not interpreted."""
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"} | {"TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", COMPILE], env=environment, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr


def test_the_cpu_does_not_ask_for_triton() -> None:
    assert activation.triton_kernel(torch.zeros(1, 1, 4)) is None
