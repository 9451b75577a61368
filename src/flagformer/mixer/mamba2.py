"""Mamba 2 (arXiv:2405.21060)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims
from flagformer.mixer import State
from flagformer.mixer.convolution import CausalConvolution
from flagformer.mixer.decay import Decay
from flagformer.mixer.scan import ScanInputs
from flagformer.mixer.scan_mixer import ScanMixer
from flagformer.mixer.sizes import CAUSAL, Chunk, DimKey, DimValue, Heads, Kernel, KeyGroups, NormEps
from flagformer.mixer.tokens import BlockTokens, Compaction
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.linear import Linear

EPS = 1e-5
PARTS = ("gate", "value", "key", "query", "step")  # of the input projection


class GroupNorm(nn.Module):
    """RMS norm of x silu(gate) in each of G groups of dimensions, with a weight for each dimension."""

    def __init__(self, width: int, groups: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = groups, eps
        self.weight = nn.Parameter(torch.empty(width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [B, T, F] in fp32, gate [B, T, F] -> [B, T, F] in the dtype of the gate."""
        x = (x * F.silu(gate.to(x.dtype))).unflatten(-1, (self.groups, -1))
        x = x * (x.square().mean(dim=-1, keepdim=True) + self.eps).rsqrt()
        return (self.weight * x.flatten(-2).to(gate.dtype)).to(gate.dtype)


class Gate(nn.Module):
    """x silu(gate), without a norm."""

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        """x [B, T, F] in fp32, gate [B, T, F] -> [B, T, F] in the dtype of the gate."""
        return (x * F.silu(gate.to(x.dtype))).to(gate.dtype)


class Skip(nn.Module):
    """Adds the input of each head, times a learned number."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, out: Tensor, x: Tensor) -> Tensor:
        """[B, T, H, V]."""
        return out + self.weight.to(x.dtype)[:, None] * x


@component("sequence_mixer", select="mixer", when="mamba2", paper="arXiv:2405.21060", requires=[CAUSAL])
class Mamba2(ScanMixer):
    """Mamba 2: a state [H, K, V] with one decay per head and token, to which each token adds its value.

    Heads have width V, the state has K numbers for each of its dimensions (`d_state`), and heads of a group
    share keys B and queries C. The state is kept in fp32, the last W - 1 inputs of the convolution in the
    dtype of the model.
    """

    def __init__(
        self,
        dims: Dims,
        *,
        heads: Heads = None,
        dim_key: DimKey = None,
        dim_value: DimValue = None,
        key_groups: KeyGroups = None,
        kernel: Kernel = 4,
        chunk: Chunk = 32,
        norm: Annotated[
            bool, Flag("mixer_norm", "a norm of the gated output of Mamba 2; False: none (Falcon-H1)")
        ] = True,
        norm_eps: NormEps = None,
        scales: Annotated[
            dict[str, Any] | None,
            Flag(
                "mixer_scales",
                "factors of the parts of the input projection of Mamba 2, by name: `gate`, `value`, `key`,"
                " `query` and `step`; 1 where a part is not named (Falcon-H1)",
                example={"value": 0.5, "step": 2.0},
            ),
        ] = None,
    ) -> None:
        heads = heads or dims.heads
        super().__init__(dims, heads, key_groups or 1, dim_key, dim_value, chunk)
        self.scales = _factors(scales)
        inner, keys = self.heads * self.dim_value, self.groups * self.dim_key
        self.widths = [inner, keys, keys]
        self.to_inner = nn.Linear(dims.dim, inner + sum(self.widths) + self.heads, bias=False)
        self.convolution = CausalConvolution(sum(self.widths), kernel, bias=True)
        self.decay, self.skip = Decay(self.heads), Skip(self.heads)
        self.norm = _norm(inner, self.groups, norm, norm_eps)
        self.w_out = Linear(inner, dims.dim, bias=False)

    def mix(self, x: Tensor, tokens: BlockTokens, state: State) -> tuple[Tensor, dict[str, Tensor]]:
        rows = Compaction(tokens)
        inner = self._scaled(self.to_inner(rows.compact(x)))
        gate, mixed, step = inner.split([self.widths[0], sum(self.widths), self.heads], dim=-1)
        mixed, tail = self.convolution(mixed, state["tail"], rows)
        v, k, q = F.silu(mixed).to(accum_dtype(x.dtype)).split(self.widths, dim=-1)
        v = v.unflatten(-1, (self.heads, -1))
        q, k = (part.unflatten(-1, (self.groups, -1)) for part in (q, k))
        step, decay = (rows.only_valid(part) for part in self.decay(step))
        inputs = ScanInputs(q, k, v * step[..., None], decay, None, rows.starts)
        out, new = self.scan(inputs, state["state"], mixed.dtype)
        out = self.norm(self.skip(out, v).flatten(2), gate)
        return rows.restore(self.w_out(out)), {"state": new, "tail": tail}

    def _scaled(self, inner: Tensor) -> Tensor:
        """[B, T, 2 H V + 2 G K + H], with the factor of each part."""
        if self.scales is None:
            return inner
        parts = inner.split([self.widths[0], *self.widths, self.heads], dim=-1)
        return torch.cat([part * factor for part, factor in zip(parts, self.scales)], dim=-1)


def _factors(scales: Mapping[str, Any] | None) -> tuple[float, ...] | None:
    """The factor of each of `PARTS`; FlagError for other names and for numbers that are not positive."""
    if scales is None:
        return None
    for name, value in scales.items():
        if name not in PARTS:
            text = f"`mixer_scales` must name {', '.join(map(repr, PARTS))}, but names {name!r}"
            raise FlagError([Finding("mixer_scales", text)])
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            text = f"`mixer_scales` must hold positive numbers, but `{name}` is {value!r}"
            raise FlagError([Finding("mixer_scales", text)])
    return tuple(float(scales.get(name, 1.0)) for name in PARTS)


def _norm(width: int, groups: int, norm: bool, eps: float | None) -> nn.Module:
    if norm:
        return GroupNorm(width, groups, EPS if eps is None else float(eps))
    if eps is not None:
        text = "`mixer_norm_eps` and `mixer_norm=False` cannot be combined, because there is no norm; leave"
        raise FlagError([Finding("mixer_norm_eps", f"{text} one of them out")])
    return Gate()
