"""Heads: as many key/value heads as queries (1706.03762), fewer (2305.13245), or one (1911.02150)."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor, nn

from flagformer.attention.projection import Projection
from flagformer.flags import Finding, Flag, FlagError, component
from flagformer.flow import Dims
from flagformer.ops.unit import unit_length


class Heads(Projection):
    """H query heads over G key/value heads; each of these serves H / G consecutive query heads."""

    def __init__(self, dims: Dims, cross: bool, groups: int) -> None:
        super().__init__()
        self.heads, self.groups, self.width = dims.heads, groups, dims.dim_head
        queries, keys = dims.heads * dims.dim_head, 2 * groups * dims.dim_head
        if cross:
            self.to_q = nn.Linear(dims.dim, queries, bias=False)
            self.to_kv = nn.Linear(dims.dim_context or dims.dim, keys, bias=False)
        else:
            self.to_qkv = nn.Linear(dims.dim, queries + keys, bias=False)

    def _split(self, x: Tensor, *heads: int) -> tuple[Tensor, ...]:
        by_head = x.view(x.shape[0], x.shape[1], sum(heads), self.width).transpose(1, 2)
        return by_head.split_with_sizes(heads, dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = self._split(self.to_qkv(x), self.heads, self.groups, self.groups)
        return q, k, v

    def queries(self, x: Tensor) -> Tensor:
        return self._split(self.to_q(x), self.heads)[0]

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        k, v = self._split(self.to_kv(context), self.groups, self.groups)
        return k, v


@component("projection", paper="arXiv:1706.03762, section 3.2.2")
class MultiHead(Heads):
    """Every head has keys and values of its own."""

    def __init__(self, dims: Dims, cross: bool) -> None:
        super().__init__(dims, cross, dims.heads)


@component("projection", select="attn_kv_heads", paper="arXiv:2305.13245")
class Grouped(Heads):
    """Grouped-query attention: consecutive heads share keys and values."""

    def __init__(
        self,
        dims: Dims,
        cross: bool,
        *,
        groups: Annotated[
            int | None, Flag("attn_kv_heads", "key/value heads G, a divisor of `heads`", least=1)
        ],
    ) -> None:
        assert groups is not None
        if dims.heads % groups:
            text = f"`attn_kv_heads` must divide `heads` = {dims.heads}, but is {groups}"
            raise FlagError([Finding("attn_kv_heads", text)])
        super().__init__(dims, cross, groups)


@component("projection", select="attn_one_kv_head", paper="arXiv:1911.02150")
class MultiQuery(Heads):
    """Multi-query attention: all heads share one key and value head."""

    def __init__(self, dims: Dims, cross: bool) -> None:
        super().__init__(dims, cross, 1)


@component("projection", select="shared_qk", paper="arXiv:2001.04451, section 2", kind="a")
class SharedQK(Projection):
    """Keys are the queries, of unit length; a token sees itself only where it sees nothing else.

    With a rotation each is turned by its own position as ever.
    """

    tied = True

    def __init__(self, dims: Dims, cross: bool) -> None:
        super().__init__()
        self.groups, self.heads = dims.heads, dims.heads
        self.to_qv = nn.Linear(dims.dim, 2 * dims.heads * dims.dim_head, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, v = self.to_qv(x).unflatten(-1, (2 * self.heads, -1)).transpose(1, 2).chunk(2, dim=1)
        return q, unit_length(q), v

    def queries(self, x: Tensor) -> Tensor:
        raise NotImplementedError("a context has no queries")

    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a context has no queries")
