"""Weights of few rows, laid out in memory as the kernel for few rows reads them: (inputs, outputs).

That kernel gives a row the same bits whatever rows are beside it and however many threads there are, so a request
sounds the same alone and together with others. PyTorch's product, which these layers would use otherwise, does not.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from torch import nn

from indextts2.native.product import few_rows

if TYPE_CHECKING:
    from indextts2.checkpoints.loading import Models

# What sees a row for each request or beam, for each flow step, or for each code of what may be a short text.
FEW_ROW_LAYERS = {
    "gpt": r"mel_head",
    "latent_projection": r"\d+",
    "codec": r"quantizer\.quantizers\.0\.out_project",
    "length_regulator": r"content_in_proj",
    "dit": (
        r"t_embedder2?\.mlp\.[02]|.*\.project_layer|final_layer\.adaLN_modulation\.1|"
        r"wavenet\.cond_layer\.conv\.conv"
    ),
}


def arrange_weights(models: Models) -> None:
    """Lay such weights out for the kernel, where it computes them. Their values stay the same."""
    for name, pattern in FEW_ROW_LAYERS.items():
        if name in models.modules:
            for layer, module in models.modules[name].named_modules():
                if re.fullmatch(pattern, layer):
                    _arrange(module)


def _arrange(layer: nn.Module) -> None:
    """Exchange the weight: (outputs, inputs), or (outputs, inputs, 1) of a convolution."""
    weight = layer.get_parameter("weight")
    transposed = weight.detach().flatten(1).t().contiguous()
    if few_rows(transposed[:, 0], transposed):
        layer.weight = nn.Parameter(transposed.t().unflatten(1, weight.shape[1:]), requires_grad=False)
