"""Value heads of another width than key heads (arXiv:1706.03762, section 3.2.2: d_v and d_k)."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from flagformer.attention.values import ValueRule, Values
from flagformer.flags import Flag, component
from flagformer.flow import Dims
from flagformer.position import Rotation


@component("values", select="attn_value_dim_head", paper="arXiv:1706.03762, section 3.2.2")
class ValueWidth(ValueRule):
    """Sets the width V of value heads; queries and keys keep width K."""

    def __init__(
        self,
        dims: Dims,
        rotation: Rotation | None,
        *,
        width: Annotated[
            int | None, Flag("attn_value_dim_head", "width V of a value head; None: `attn_dim_head`", ge=1)
        ],
    ) -> None:
        assert width is not None
        self.width = width

    def __call__(self, values: Values) -> Values:
        return replace(values, width=self.width)
