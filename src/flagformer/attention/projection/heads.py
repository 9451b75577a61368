"""Heads: as many key/value heads as queries (1706.03762), fewer (2305.13245), or one (1911.02150)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims


class Heads(Projection):
    """H query heads over G key/value heads; each of these serves H / G consecutive query heads."""

    def __init__(self, dims: Dims, cross: bool, shared: bool, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.width = dims.heads, groups, dims.dim_head
        queries, keys = dims.heads * dims.dim_head, groups * dims.dim_head
        self.widths = [keys] if shared else [keys, groups * dims.dim_value]
        if cross:
            self.to_q = nn.Linear(dims.dim, queries, bias=False)
            self.to_kv = nn.Linear(dims.dim_context or dims.dim, sum(self.widths), bias=False)
        else:
            self.to_qkv = nn.Linear(dims.dim, queries + sum(self.widths), bias=False)

    def _heads(self, x: Tensor, heads: int) -> Tensor:
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)  # [B, heads, T, K or V]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, *entries = self.to_qkv(x).split_with_sizes([self.heads * self.width, *self.widths], dim=-1)
        k, v = entries[0], entries[-1]  # one and the same where they are shared
        return self._heads(q, self.heads), self._heads(k, self.groups), self._heads(v, self.groups)

    def queries(self, x: Tensor) -> Tensor:
        return self._heads(self.to_q(x), self.heads)

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        entries = self.to_kv(context).split_with_sizes(self.widths, dim=-1)
        return self._heads(entries[0], self.groups), self._heads(entries[-1], self.groups)


@component("projection", paper="arXiv:1706.03762, section 3.2.2")
class MultiHead(Heads):
    """Every head has keys and values of its own."""

    def __init__(self, dims: Dims, cross: bool, shared: bool) -> None:
        super().__init__(dims, cross, shared, dims.heads)


@component("projection", select="attn_kv_heads", paper="arXiv:2305.13245")
class Grouped(Heads):
    """Grouped-query attention: consecutive heads share keys and values."""

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        shared: bool,
        *,
        groups: Annotated[
            int | None, Flag("attn_kv_heads", "key/value heads G, a divisor of `heads`", least=1)
        ],
    ) -> None:
        assert groups is not None
        if dims.heads % groups:
            text = f"`attn_kv_heads` must divide `heads` = {dims.heads}, but is {groups}"
            raise FlagError([Finding("attn_kv_heads", text)])
        super().__init__(dims, cross, shared, groups)


@component("projection", select="attn_one_kv_head", paper="arXiv:1911.02150")
class MultiQuery(Heads):
    """Multi-query attention: all heads share one key and value head."""

    def __init__(self, dims: Dims, cross: bool, shared: bool) -> None:
        super().__init__(dims, cross, shared, 1)
