"""No norm (1706.03762), cosine similarity (2010.04245), RMS norm per head (2302.05442)."""

from __future__ import annotations

from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flagformer.attention.qk_norm import QKNorm
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims
from flagformer.norm.rmsnorm import min_norm, rsqrt_ms
from flagformer.ops.identity import identity

Scale = Annotated[float | None, Flag("attn_scale", "factor of q k^T; None: K ** -0.5", ge=1e-6, example=0.7)]
Offset = Annotated[
    float,
    Flag(
        "attn_qk_rmsnorm_weight_offset",
        "added to the weights, which start at 1 minus it (Gemma 3: 1)",
        example=1.0,
    ),
]
AfterRotation = Annotated[
    bool,
    Flag(
        "rotary_before_qk_rmsnorm",
        "rotates q and k before `attn_qk_rmsnorm`, in place of after it (HunYuan, Llama 4)",
        example_with={"rotary_pos_emb": True},
    ),
]


@component("qk_norm", paper="arXiv:1706.03762, section 3.2.1")
class NoQKNorm(QKNorm):
    """Dot products, scaled by K ** -0.5 or by a number of your own."""

    def __init__(self, dims: Dims, groups: int, *, scale: Scale = None) -> None:
        super().__init__()
        self.scale = dims.dim_head**-0.5 if scale is None else float(scale)

    def queries(self, q: Tensor) -> Tensor:
        return q

    def keys(self, k: Tensor) -> Tensor:
        return k


@component("qk_norm", select="attn_qk_norm", paper="arXiv:2010.04245", needs={"head_keys"})
class L2QKNorm(QKNorm):
    """q and k have unit length; a fixed factor replaces K ** -0.5 (the paper learns it).

    With a learned gain per head and dimension the factor is K ** -0.5 again (2302.05442); the gains start at
    K ** 0.25, so that products start at sqrt(K) times the cosine.
    """

    def __init__(
        self,
        dims: Dims,
        groups: int,
        *,
        factor: Annotated[
            float | None,
            Flag("attn_qk_norm_scale", "factor of the cosines; None: 10", ge=1e-6),
        ] = None,
        parts: Annotated[
            int,
            Flag("attn_qk_norm_groups", "groups of dims per head, each of unit length", ge=1),
        ] = 1,
        gains: Annotated[
            bool, Flag("attn_qk_norm_dim_scale", "a learned gain per head and dimension")
        ] = False,
    ) -> None:
        super().__init__()
        self._check(dims, factor, parts, gains)
        self.groups = parts
        self.scale = dims.dim_head**-0.5 if gains else 10.0 if factor is None else float(factor)
        self.q_gain = Gain(dims.heads, dims.dim_head) if gains else identity
        self.k_gain = Gain(groups, dims.dim_head) if gains else identity

    def _check(self, dims: Dims, factor: float | None, parts: int, gains: bool) -> None:
        findings = []
        if dims.dim_head % parts or dims.dim_head == parts:
            text = (
                f"`attn_qk_norm_groups` must divide `attn_dim_head` = {dims.dim_head} into parts of two dims"
            )
            findings.append(Finding("attn_qk_norm_groups", f"{text} or more, but is {parts}"))
        if gains and factor is not None:
            text = (
                "`attn_qk_norm_scale` and `attn_qk_norm_dim_scale` cannot be combined, because learned gains"
            )
            findings.append(Finding("attn_qk_norm_scale", f"{text} replace the factor; keep one"))
        if findings:
            raise FlagError(findings)

    def _unit(self, x: Tensor) -> Tensor:
        return F.normalize(x.unflatten(-1, (self.groups, -1)), dim=-1, eps=min_norm(x)).flatten(-2)

    def queries(self, q: Tensor) -> Tensor:
        return self.q_gain(self._unit(q))

    def keys(self, k: Tensor) -> Tensor:
        return self.k_gain(self._unit(k))


class Gain(nn.Module):
    """A number per head and dimension, [H, 1, K]."""

    def __init__(self, heads: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(heads, 1, width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.weight, self.weight.shape[2] ** 0.25)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


@component("qk_norm", select="attn_qk_rmsnorm", paper="arXiv:2302.05442, section 2", needs={"head_keys"})
class RMSQKNorm(QKNorm):
    """q and k have unit root mean square, times a learned weight.

    Departure: RMSNorm where the paper has LayerNorm, as later models do.
    """

    def __init__(
        self,
        dims: Dims,
        groups: int,
        *,
        weight: Annotated[
            str,
            Flag(
                "attn_qk_rmsnorm_weight",
                "a learned weight per head and dimension, one per dimension for all heads (Qwen3), or none",
                choices=("head", "shared", "none"),
                example="shared",
            ),
        ] = "head",
        all_heads: Annotated[
            bool, Flag("attn_qk_rmsnorm_all_heads", "one mean square over all heads of a token (OLMo 2)")
        ] = False,
        eps: Annotated[
            float | None,
            Flag(
                "attn_qk_rmsnorm_eps",
                "added to the mean square; None: no epsilon",
                ge=1e-12,
                lt=1,
                example=0.25,
            ),
        ] = None,
        offset: Offset = 0.0,
        after: AfterRotation = False,
        scale: Scale = None,
    ) -> None:
        super().__init__()
        if offset and weight == "none":
            text = "`attn_qk_rmsnorm_weight_offset` and `attn_qk_rmsnorm_weight='none'` cannot be combined,"
            text = f"{text} because there is no weight to add it to; leave one of them out"
            raise FlagError([Finding("attn_qk_rmsnorm_weight_offset", text)])
        self.scale = dims.dim_head**-0.5 if scale is None else float(scale)
        self.after_rotation = after
        self.all_heads, self.eps, self.offset = all_heads, eps, float(offset)
        self.q_weight = _weight(weight, dims.heads, dims.dim_head)
        self.k_weight = _weight(weight, groups, dims.dim_head)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for weight in self.parameters(recurse=False):
            nn.init.constant_(weight, 1 - self.offset)

    def forward(self, x: Tensor, is_query: bool) -> Tensor:
        weight = self.q_weight if is_query else self.k_weight
        normed = self._rsqrt_ms(x)
        if weight is None:
            return x * normed
        return x * (normed * (weight + self.offset if self.offset else weight))

    def _rsqrt_ms(self, x: Tensor) -> Tensor:
        """[..., H, T, K] -> [..., H, T, 1], or [..., 1, T, 1] over all heads."""
        if not self.all_heads:
            return rsqrt_ms(x, self.eps)
        return rsqrt_ms(x.transpose(-3, -2).flatten(-2), self.eps).unsqueeze(-3)

    def queries(self, q: Tensor) -> Tensor:
        return self(q, True)

    def keys(self, k: Tensor) -> Tensor:
        return self(k, False)


def _weight(kind: str, heads: int, width: int) -> nn.Parameter | None:
    """[H, 1, K], [K], or None."""
    shapes = {"head": (heads, 1, width), "shared": (width,)}
    return nn.Parameter(torch.empty(shapes[kind])) if kind in shapes else None
