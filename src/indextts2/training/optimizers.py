"""The optimizer of a run: AdamW, or Muon for the matrices of hidden layers with AdamW for everything else.

Sources: Loshchilov and Hutter 2019 (AdamW); Jordan et al. 2024 (Muon); Liu et al. 2025 (Muon at the step size of AdamW,
so that both share one learning rate).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


def split_matrices(model: nn.Module, outer: Iterable[str]) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trained parameters of `model` as (matrices of hidden layers, all others).

    Args:
        outer: prefixes of names that are no hidden layers: first and last maps and heads.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    prefixes = tuple(outer)
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_hidden = parameter.dim() == 2 and id(parameter) not in embeddings and not name.startswith(prefixes)
        (matrices if is_hidden else others).append(parameter)
    return matrices, others


class Optimizers:
    """AdamW on groups of parameters and, where there are matrices, Muon on these; one learning rate for both.

    Args:
        groups: for AdamW; `scale` in a group multiplies the learning rate.
        matrices: for Muon; may be empty.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        matrices: list[nn.Parameter],
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float,
    ) -> None:
        self.parts: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(groups, lr=learning_rate, betas=betas, weight_decay=weight_decay)
        }
        if matrices:
            self.parts["muon"] = torch.optim.Muon(
                matrices, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )

    def step(self, learning_rate: float) -> None:
        for part in self.parts.values():
            for group in part.param_groups:
                group["lr"] = learning_rate * group.get("scale", 1.0)
            part.step()

    def zero_grad(self) -> None:
        for part in self.parts.values():
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
