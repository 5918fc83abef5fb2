"""Low-rank adapters of the GPT-2 stack (LoRA, Hu et al. 2021): trained beside frozen weights, merged to speak.

I inputs, O outputs, R rank. An adapter changes a weight W (I, O) to W + scale * A B with A (I, R) and B (R, O).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from indextts2.errors import CheckpointError
from indextts2.models.gpt.transformer import GPT2Stack

TARGETS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")


class LowRank(nn.Module):
    """The change of one weight; zero at the start, since B is."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(inputs, rank) / math.sqrt(inputs))
        self.b = nn.Parameter(torch.zeros(rank, outputs))
        self.scale = scale

    def forward(self, weight: Tensor) -> Tensor:
        """(I, O) -> (I, O)."""
        return weight + self.scale * (self.a @ self.b).to(weight.dtype)


def adapted_names(stack: GPT2Stack) -> list[str]:
    """Names of the layers that adapters change, such as `h.0.attn.c_attn`."""
    return [f"h.{layer}.{target}" for layer in range(len(stack.h)) for target in TARGETS]


def add_adapters(stack: GPT2Stack, rank: int, scale: float) -> nn.ModuleDict:
    """Put an adapter on every layer of `adapted_names`, to be trained; the weights beneath stay as they are.

    Returns:
        The adapters by name with `.` as `/`; their parameters are the only new ones.
    """
    adapters = nn.ModuleDict()
    for name in adapted_names(stack):
        layer = stack.get_submodule(name)
        inputs, outputs = layer.get_parameter("weight").shape
        adapter = LowRank(inputs, outputs, rank, scale)
        parametrize.register_parametrization(layer, "weight", adapter)
        adapters[name.replace(".", "/")] = adapter
    return adapters


@torch.no_grad()
def merge_adapters(stack: GPT2Stack, tensors: Mapping[str, Tensor], scale: float) -> None:
    """Add adapters to the weights for good. The old weights, which may be mapped from a file, are not written to.

    Args:
        tensors: `<layer>.a` (I, R) and `<layer>.b` (R, O) of every layer of `adapted_names`.

    Raises:
        CheckpointError: a tensor is missing, unknown or does not fit the weight.
    """
    names = adapted_names(stack)
    wanted = {f"{name}.{part}" for name in names for part in ("a", "b")}
    if unknown := sorted(set(tensors) ^ wanted):
        raise CheckpointError(f"the adapter and the model differ in {unknown[0]} (and {len(unknown) - 1} more tensors)")
    for name in names:
        weight = stack.get_submodule(name).get_parameter("weight")
        a, b = tensors[f"{name}.a"].float(), tensors[f"{name}.b"].float()
        if (a.shape[0], b.shape[1]) != tuple(weight.shape) or a.shape[1] != b.shape[0]:
            raise CheckpointError(
                f"the adapter of {name} has shapes {list(a.shape)} and {list(b.shape)}, which do not fit a weight of "
                f"{list(weight.shape)}; it was trained for another model"
            )
        changed = weight.float() + scale * (a @ b).to(weight.device)
        stack.get_submodule(name).weight = nn.Parameter(changed.to(weight.dtype), requires_grad=False)
