"""One projection for keys and values (arXiv:2606.04032, the form Q-K=V)."""

from __future__ import annotations

from dataclasses import replace

from flagformer.attention.values import ValueRule, Values
from flagformer.flags import Finding, FlagError, component
from flagformer.flow import Dims
from flagformer.position import Rotation

FLAG = "attn_shared_kv"


@component(
    "values",
    select=FLAG,
    paper="arXiv:2606.04032",
    needs={"own_keys"},
    lacks={"cached_values": "the cache holds the keys, which are the values too"},
)
class SharedKV(ValueRule):
    """The keys, before their norm and rotation, are the values."""

    def __init__(self, dims: Dims, rotation: Rotation | None) -> None:
        self.keys = dims.dim_head

    def __call__(self, values: Values) -> Values:
        if values.width != self.keys:
            text = f"`{FLAG}` and `attn_value_dim_head` cannot be combined here, because the values are the"
            text = f"{text} keys, of width {self.keys}, and not {values.width}; leave one of them out"
            raise FlagError([Finding(FLAG, text)])
        return replace(values, shared=True)
