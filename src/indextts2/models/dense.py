"""Dense layers of inference on CPUs: matrix products by the faster of the two libraries that torch carries.

Legend: I inputs, O outputs, B batch, T frames, Q frames that ask, N heads, D width of a head.

`F.linear` goes to MKL, which runs at half speed on processors that are not Intel's. oneDNN does not. Torch calls it for
convolutions, for other types, and from what `torch.compile` makes; this is the operator that the latter uses. Results
differ in rounding. Which library computes a product depends on the processor and on shapes, never on a measurement, so
that a seed gives the same speech again. Weights that lie in memory as (I, O) go to our own kernels: to one for a few
rows, and where oneDNN is used, which is slower there, also to one for many.

Whatever records gradients, is traced or compiled, or is no plain float32 on a CPU, goes the ordinary way.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import platform
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.native.matrix import add_product_, addable
from indextts2.native.product import few_rows, multiply_rows
from indextts2.native.softmax import softmax_

logger = logging.getLogger(__name__)
_thread = threading.local()
T = TypeVar("T")

# "onednn" or "torch"; anything else, and nothing, leaves the choice to the processor.
LIBRARY_VARIABLE = "INDEXTTS2_LINEAR"
# Below so many multiply-adds the operator costs more to call than it saves.
FEWEST_PRODUCTS = 1 << 20
# Queries per thread whose scores are held at once: these stay in the caches.
QUERY_BLOCK = 512
FEWEST_SCORES = 128 * 128
# With more threads than this torch's own attention, which gives every thread heads of its own, keeps them busier.
MOST_ATTENTION_THREADS = 8


class Kept(Generic[T]):
    """What is made from a frozen weight, kept as long as the weight stays the same. Copies of it start empty."""

    def __init__(self) -> None:
        self._held: tuple[tuple[int, int], weakref.ref[Tensor], dict[object, T]] | None = None

    def get(self, weight: Tensor, kind: object, make: Callable[[Tensor], T]) -> T:
        """`make(weight)`, where `kind` says what is made; several kinds are kept beside each other."""
        held = self._held  # read once: other threads may replace it
        state = (weight.data_ptr(), 0 if weight.is_inference() else weight._version)
        if held is None or held[0] != state or held[1]() is not weight:
            held = self._held = (state, weakref.ref(weight), {})
        made = held[2]
        if kind not in made:
            made[kind] = make(weight)
        return made[kind]

    def __reduce__(self) -> tuple[type[Kept[T]], tuple[()]]:
        return Kept, ()


class Linear(nn.Linear):
    """A linear layer that uses `linear`."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True) -> None:
        super().__init__(in_features, out_features, bias)
        self._reduced: Kept[Tensor] = Kept()

    def forward(self, x: Tensor) -> Tensor:
        dtype = reduced_dtype(x)
        if dtype is None or self.weight.requires_grad:
            return linear(x, self.weight, self.bias)
        return reduced_linear(x, self._reduced.get(self.weight, dtype, lambda weight: weight.to(dtype)), self.bias)


@contextlib.contextmanager
def products_in(dtype: torch.dtype) -> Iterator[None]:
    """What this thread multiplies in here by `Linear` and `linear` is rounded to `dtype` before, without gradients."""
    before = getattr(_thread, "dtype", torch.float32)
    _thread.dtype = dtype
    try:
        yield
    finally:
        _thread.dtype = before


def reduced_dtype(x: Tensor) -> torch.dtype | None:
    """What products with `x` are rounded to; None if they are not."""
    dtype: torch.dtype = getattr(_thread, "dtype", torch.float32)
    return None if dtype is torch.float32 or x.dtype is not torch.float32 or torch.is_grad_enabled() else dtype


def reduced_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `linear`, the factors in the type of `weight`; the result and the bias in that of `x`."""
    y = F.linear(x.to(weight.dtype), weight).to(x.dtype)
    return y if bias is None else y.add_(bias)


@functools.cache
def computes_bfloat16(device_type: str) -> bool:
    """Whether devices of this type have instructions for products of bfloat16."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu":
        return False
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # not public; without them the answer is no
    return any(bool(getattr(torch.cpu, name)()) for name in checks if hasattr(torch.cpu, name))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """As `F.linear`: (..., I) and (O, I) -> (..., O)."""
    if (dtype := reduced_dtype(x)) is not None:
        return reduced_linear(x, weight.to(dtype), bias)
    if weight.stride(0) == 1 and _inferring() and few_rows(x, transposed := weight.t()):
        return multiply_rows(x, transposed, bias)
    if not _worthwhile(x, x.numel() * weight.shape[0]):
        return F.linear(x, weight, bias)
    if weight.stride(0) == 1 and addable(rows := x.reshape(-1, x.shape[-1]), weight.t()):
        y = x.new_zeros(len(rows), len(weight)) if bias is None else bias.repeat(len(rows), 1)
        return add_product_(y, rows, weight.t()).view(*x.shape[:-1], -1)
    # Rows must be dense: for others the operator falls back to a reference loop that is a hundred times slower.
    return _product(x.contiguous(), _dense(weight), bias)


def add_product(y: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """`y` (R, C) + `left` (R, I) `right` (I, C), whose rows may have gaps; without gradients in the memory of `y`."""
    if reduced_dtype(y) is None and _worthwhile(y, left.numel() * right.shape[1]) and addable(y, left, right):
        return add_product_(y, left, right)
    return y + linear(right.t(), left).t()


def silu_gate(gate: Tensor, value: Tensor) -> Tensor:
    """SiLU(gate) * value; without gradients in the memory of `gate`, which nothing may need any more."""
    if torch.is_grad_enabled():
        return F.silu(gate) * value
    return F.silu(gate, inplace=True).mul_(value)


def attention(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> Tensor:
    """Attention without order: (B,Q,N,D), keys and values (B,T,N,D) -> (B,Q,N,D).

    `key_mask` (B,1,1,T) is true where a frame may be seen.
    """
    scores = query.shape[1] * key.shape[1]
    few_threads = torch.get_num_threads() <= MOST_ATTENTION_THREADS
    if key_mask is None and few_threads and scores >= FEWEST_SCORES and _worthwhile(query, scores * query.shape[-1]):
        return _blockwise_attention(query, key, value)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value, attn_mask=key_mask).transpose(1, 2)


def _blockwise_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One head after the other, some queries at a time: `query` (B,Q,N,D) -> (B,Q,N,D)."""
    answer = torch.empty_like(query, memory_format=torch.contiguous_format)
    scale, rows = query.shape[-1] ** -0.5, QUERY_BLOCK * torch.get_num_threads()
    for item in range(query.shape[0]):
        for head in range(query.shape[2]):
            q, k, v = query[item, :, head] * scale, key[item, :, head].contiguous(), value[item, :, head].contiguous()
            for start in range(0, query.shape[1], rows):
                weights = softmax_(_product(q[start : start + rows], k))
                answer[item, start : start + rows, head] = _product(weights, v.t())
    return answer


def uses_onednn() -> bool:
    """Whether large float32 products of inference are computed by oneDNN on this machine."""
    return _choice() is not None


def _worthwhile(x: Tensor, products: int) -> bool:
    return (
        products >= FEWEST_PRODUCTS
        and _inferring()
        and x.is_cpu
        and x.dtype is torch.float32
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and uses_onednn()
    )


def _inferring() -> bool:
    """Whether nothing records gradients and types are left as they are."""
    return not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _dense(weight: Tensor) -> Tensor:
    """A weight whose rows, or columns, follow each other without gaps."""
    rows, columns = weight.shape
    return weight if weight.stride() in ((columns, 1), (1, rows)) else weight.contiguous()


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """oneDNN's product, where it is used: (..., I) and (O, I) -> (..., O)."""
    product = _choice()
    assert product is not None
    return product(x, weight, bias, "none", [], "")


@functools.cache
def _choice() -> Callable[..., Tensor] | None:
    """oneDNN's product if it is to be used, chosen once per process; what was chosen is logged at INFO."""
    wanted = os.environ.get(LIBRARY_VARIABLE, "")
    product = None
    if wanted == "onednn" or (wanted != "torch" and torch.backends.mkl.is_available() and not _is_intel()):
        product = _checked_product()
    logger.info("float32 products of inference: %s", "torch's own" if product is None else "oneDNN")
    return product


def _checked_product() -> Callable[..., Tensor] | None:
    """The operator, if this torch has it and it means what it is taken for; it is no public one."""
    weight = torch.randn((24, 16), generator=torch.Generator().manual_seed(0))
    x, bias = weight[:8], weight[0].repeat(2)[:24]
    try:
        product: Callable[..., Tensor] = torch.ops.mkldnn._linear_pointwise.default
        with torch.inference_mode():
            found = product(x, weight, bias, "none", [], "")
            turned = product(x, weight.t().contiguous().t(), None, "none", [], "") + bias
    except (AttributeError, RuntimeError) as error:
        logger.info("torch %s has no product by oneDNN: %s", torch.__version__, error)
        return None
    expected = F.linear(x, weight, bias)
    good = torch.allclose(found, expected, atol=1e-4) and torch.allclose(turned, expected, atol=1e-4)
    return product if good else None


def _is_intel() -> bool:
    """Whether the processor is Intel's, for which MKL was written."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        with cpuinfo.open(errors="replace") as lines:
            vendor = next((line for line in lines if line.startswith("vendor_id")), "")
        return "GenuineIntel" in vendor
    return "GenuineIntel" in platform.processor()
