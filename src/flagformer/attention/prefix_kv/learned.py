"""Learned memory key/values (arXiv:1907.01470) and the null key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.attention.prefix_kv import PrefixKV
from flagformer.flags import Flag, component
from flagformer.flow import Dims, KeyValues


@component("prefix_kv", select="attn_num_mem_kv", paper="arXiv:1907.01470, section 3")
class LearnedMemory(PrefixKV):
    """M learned keys and values per layer and key/value head."""

    def __init__(
        self,
        dims: Dims,
        groups: int,
        *,
        count: Annotated[int, Flag("attn_num_mem_kv", "learned key/value pairs M per layer", ge=0)],
    ) -> None:
        super().__init__()
        self.count = count
        self.k = nn.Parameter(torch.empty(groups, count, dims.dim_head))
        self.v = nn.Parameter(torch.empty(groups, count, dims.dim_value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.k)
        nn.init.normal_(self.v)

    def forward(self, kv: KeyValues, norm: Callable[[Tensor], Tensor]) -> KeyValues:
        return kv.prepend(norm(self.k), self.v)


@component("prefix_kv", select="attn_add_zero_kv")
class NullKV(PrefixKV):
    """One zero key with a zero value: a query may attend to nothing (`add_zero_attn` of torch)."""

    count = 1

    def __init__(self, dims: Dims, groups: int) -> None:
        super().__init__()

    def forward(self, kv: KeyValues, norm: Callable[[Tensor], Tensor]) -> KeyValues:
        k, v = (x.new_zeros(x.shape[1], 1, x.shape[3]) for x in (kv.k, kv.v))
        return kv.prepend(norm(k), v)
