"""Diffusion transformer with WaveNet head: the velocity field of the flow from noise to mel.

Legend: B batch, M mel bands, P prompt frames, T frames in all (prompt, then target), H width, W WaveNet width,
S style features, C condition channels, R rows of a time table (B, or 1 where all items share one time).

All is frame-major (B,T,...). What does not change from step to step is computed once: `condition` holds the part of
the input that is not the state, `time_tables` every affine map of the time. Training and inference use the same
functions. Source: Seed-VC's DiT as IndexTTS2 uses it, spec 07 sections 3 to 6 and 10 section 3.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from indextts2.config import S2MelConfig
from indextts2.errors import ConfigError
from indextts2.models.dense import Kept, Linear, linear, products_in
from indextts2.models.s2mel.padded import PaddedVelocity
from indextts2.models.s2mel.transformer import Rotary, Transformer, rotary_table
from indextts2.models.s2mel.wavenet import WaveNet

TIME_FEATURES = 256
TIME_SCALE = 1000.0
TIME_PERIOD = 10000.0
FINAL_NORM_EPS = 1e-6


class TimeTables(NamedTuple):
    """What the network needs to know of the time, one row per time or item."""

    norms: Tensor  # (R, 2*depth+1, 2, H) gain and offset of every adaptive norm
    wavenet: Tensor  # (R, layers, 2W) offsets of the gates
    final: Tensor  # (R, 2, W) shift and scale of the last norm

    def row(self, index: int) -> TimeTables:
        """The tables of one time, to be shared by a whole batch."""
        return TimeTables(*(table[index : index + 1] for table in self))


@dataclass(frozen=True)
class Condition:
    """The constant side of the input of one batch of utterances."""

    constant: Tensor  # (B,T,H) everything but the state, merged
    rotary: Rotary
    lengths: Tensor | None  # (B,) frames per item; None where no item is padded
    key_mask: Tensor | None  # (B,1,1,T)


class TimestepEmbedder(nn.Module):
    """Sinusoidal features of the time, cosines first, and a two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(Linear(TIME_FEATURES, width), nn.SiLU(), Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Times (R,) in [0,1] -> (R,width)."""
        half = TIME_FEATURES // 2
        index = torch.arange(half, device=t.device, dtype=torch.float32)
        # Angles up to 1000 need float32 at least, whatever the type of the weights.
        angle = TIME_SCALE * t[:, None] * torch.exp(-math.log(TIME_PERIOD) / half * index)
        features = torch.cat((angle.cos(), angle.sin()), dim=-1)
        return self.mlp(features.to(self.get_parameter("mlp.0.weight").dtype))


class FinalLayer(nn.Module):
    """Layer norm without gain, modulated by the time, and a linear map."""

    def __init__(self, time_width: int, width: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), Linear(time_width, 2 * width))
        self.linear = Linear(width, width)

    def table(self, time_embedding: Tensor) -> Tensor:
        """(R,H) -> shift and 1 + scale (R,2,W)."""
        shift, scale = self.adaLN_modulation(time_embedding).chunk(2, dim=-1)
        return torch.stack((shift, 1 + scale), dim=1)

    def forward(self, v: Tensor, table: Tensor) -> Tensor:
        normalised = F.layer_norm(v, v.shape[-1:], eps=FINAL_NORM_EPS)
        return self.linear(torch.addcmul(table[:, :1], normalised, table[:, 1:]))


class DiT(nn.Module):
    """Velocity of the state x at time t, given prompt mel, condition and style."""

    # Embedders of other variants, and constants that are computed here.
    UNUSED_KEYS: tuple[str, ...] = (
        r"x_embedder\.(weight|bias)",
        r"cond_embedder\.weight",
        r"content_mask_embedder\.weight",
        r"input_pos",
        r"t_embedder2?\.freqs",
    )

    def __init__(self, config: S2MelConfig) -> None:
        super().__init__()
        dit, width, wave_width = config.dit, config.dit.hidden_dim, config.wavenet.hidden_dim
        if width % (2 * dit.num_heads):
            raise ConfigError(f"s2mel.DiT.hidden_dim {width} must be a multiple of 2 * num_heads ({dit.num_heads})")
        if config.length_regulator.channels != dit.content_dim:
            raise ConfigError(
                f"s2mel.length_regulator.channels is {config.length_regulator.channels} but "
                f"s2mel.DiT.content_dim is {dit.content_dim}; they must be equal"
            )
        self.config = config
        self.input_widths = [dit.in_channels, dit.in_channels, width, config.style_dim]
        self.transformer = Transformer(width, dit.num_heads, dit.depth)
        self.cond_projection = Linear(dit.content_dim, width)
        self.cond_x_merge_linear = Linear(sum(self.input_widths), width)
        self.t_embedder = TimestepEmbedder(width)
        self.t_embedder2 = TimestepEmbedder(wave_width)
        self.skip_linear = Linear(width + dit.in_channels, width)
        self.conv1 = Linear(width, wave_width)
        self.wavenet = WaveNet(config.wavenet)
        self.res_projection = Linear(width, wave_width)
        self.final_layer = FinalLayer(width, wave_width)
        self.conv2 = nn.Conv1d(wave_width, dit.in_channels, 1)
        # Every official layer has the map for a skip; only those that take one use it.
        without = "|".join(str(i) for i in range(dit.depth) if not Transformer.takes_skip(i, dit.depth))
        skip_keys = rf"transformer\.layers\.({without})\.skip_in_linear\.(weight|bias)"
        self.UNUSED_KEYS = (*type(self).UNUSED_KEYS, skip_keys)
        self._padded: Kept[PaddedVelocity] = Kept()

    @property
    def padded(self) -> PaddedVelocity | None:
        """The velocity at padded lengths, where that is how this device computes it: on CUDA, without gradients."""
        if self.conv2.weight.device.type != "cuda" or torch.is_grad_enabled():
            return None
        return self._padded.get(self.conv2.weight, "padded", lambda _: PaddedVelocity(self))

    def time_tables(self, t: Tensor) -> TimeTables:
        """Tables for times (R,) in [0,1]: one row per step of a sampler, or per item of a training batch."""
        embedding = self.t_embedder(t)
        return TimeTables(
            norms=self.transformer.tables(embedding),
            wavenet=self.wavenet.table(self.t_embedder2(t)),
            final=self.final_layer.table(embedding),
        )

    def condition(self, prompt_mel: Tensor, mu: Tensor, style: Tensor, lengths: Tensor | None = None) -> Condition:
        """Merge all that stays the same over the steps.

        Args:
            prompt_mel: (B,P,M), P <= T; zero on frames that belong to no prompt.
            mu: condition (B,T,C) of prompt and target.
            style: speaker embedding (B,S).
            lengths: (B,) frames per item of a padded batch, each more than the padding of the WaveNet.
        """
        _, w_prompt, w_content, w_style = self.cond_x_merge_linear.weight.split(self.input_widths, dim=1)
        constant = linear(self.cond_projection(mu), w_content, self.cond_x_merge_linear.bias)
        constant = constant + linear(style, w_style)[:, None]
        missing = mu.shape[1] - prompt_mel.shape[1]
        constant = constant + F.pad(linear(prompt_mel, w_prompt), (0, 0, 0, missing))
        return self._with_positions(constant, lengths)

    def with_null_branch(self, condition: Condition) -> Condition:
        """Double the batch for guidance: the same items again without prompt, condition and style."""
        w_content = self.cond_x_merge_linear.weight.split(self.input_widths, dim=1)[2]
        # The raw condition of the null branch is zero: its projection is the bias.
        null = linear(self.cond_projection.bias, w_content, self.cond_x_merge_linear.bias)
        constant = torch.cat((condition.constant, null.expand_as(condition.constant)))
        lengths = condition.lengths
        return self._with_positions(constant, None if lengths is None else lengths.repeat(2))

    def _with_positions(self, constant: Tensor, lengths: Tensor | None) -> Condition:
        frames = constant.shape[1]
        rotary = rotary_table(frames, self.config.dit.hidden_dim // self.config.dit.num_heads, constant)
        key_mask = None
        if lengths is not None:
            key_mask = (torch.arange(frames, device=constant.device) < lengths[:, None])[:, None, None]
        return Condition(constant, rotary, lengths, key_mask)

    def velocity(
        self,
        x: Tensor,
        condition: Condition,
        time: TimeTables,
        first_frame: int = 0,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Velocity of the frames from `first_frame` on.

        Args:
            x: state (B,T,M), zero on the prompt frames.
            time: tables with B rows, or one row for all.
            first_frame: earlier frames feed the attention but get no velocity of their own.
            dtype: what the factors of the products in transformer and WaveNet are rounded to, without gradients. Sums,
                norms, attention, time tables and all layers around these two are not.

        Returns:
            (B, T-first_frame, M).
        """
        w_state = self.cond_x_merge_linear.weight[:, : x.shape[-1]]
        h = condition.constant + linear(x, w_state)
        # The WaveNet needs that many real frames on the left; its own left mirror then touches none that is wanted.
        start = max(0, first_frame - self.wavenet.reach)
        with products_in(dtype):
            h = self.transformer(h, time.norms, condition.rotary, condition.key_mask, start)
        lengths = None if condition.lengths is None else condition.lengths - start
        return self._head(h, x[:, start:], time, lengths, dtype)[:, first_frame - start :]

    def _head(self, h: Tensor, x: Tensor, time: TimeTables, lengths: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Transformer output (B,T,H) and state (B,T,M) -> velocity (B,T,M)."""
        r = self.skip_linear(torch.cat((h, x), dim=-1))
        v, residual = self.conv1(r), self.res_projection(r)
        with products_in(dtype):
            v = self.wavenet(v, time.wavenet, lengths)
        v = v + residual
        v = self.final_layer(v, time.final)
        return linear(v, self.conv2.weight[..., 0], self.conv2.bias)
