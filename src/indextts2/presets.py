"""What inference may leave out: named choices between exactness and speed."""

from __future__ import annotations

import math
from dataclasses import dataclass

SOLVERS = ("euler", "midpoint", "heun", "ab2")
FLOW_DTYPES = ("float32", "bfloat16", "auto")
GPT_WEIGHTS = ("full", "int8", "int4", "auto")


@dataclass(frozen=True)
class Preset:
    """Values of the options of the same names in `InferenceConfig`, where these are not given.

    `steps_share`: part of the model's own number of flow steps. `sway`: unless the model's own is lower.
    """

    steps_share: float = 1.0
    solver: str = "euler"
    sway: float = 0.0
    guidance_until: float = 1.0
    prompt_seconds: float = 0.0
    flow_dtype: str = "float32"
    gpt_weights: str = "full"

    def steps(self, of_model: int) -> int:
        """Flow steps for a model that takes so many by default."""
        return max(1, math.ceil(of_model * self.steps_share))


# Chosen by the distance of the mel to the exact one for the same seed and codes, see docs/performance.md.
PRESETS: dict[str, Preset] = {
    "exact": Preset(),
    "balanced": Preset(steps_share=0.5, sway=-0.5, guidance_until=0.5, flow_dtype="auto", gpt_weights="auto"),
    "fast": Preset(
        steps_share=0.32, sway=-0.75, guidance_until=0.3, prompt_seconds=5.0, flow_dtype="auto", gpt_weights="auto"
    ),
}
