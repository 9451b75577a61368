"""Values with rotary positions."""

from __future__ import annotations

from dataclasses import replace

from flagformer.attention.values import ValueRule, Values
from flagformer.flags import Finding, FlagError, component
from flagformer.flow import Dims
from flagformer.position import Rotation

FLAG = "attn_rotary_embed_values"


@component("values", select=FLAG, needs={"value_rotation"}, kind="a")
class RotaryValues(ValueRule):
    """Rotates values by position, as keys: outputs of heads then depend on absolute positions."""

    def __init__(self, dims: Dims, rotation: Rotation | None) -> None:
        self.width = None if rotation is None else rotation.width
        if self.width == 0:
            text = f"`{FLAG}` needs a rotation, because it rotates values as keys are rotated"
            raise FlagError([Finding(FLAG, f"{text}; set `rotary_pos_emb=True`, or leave it out")])

    def __call__(self, values: Values) -> Values:
        if self.width is not None and self.width > values.width:
            text = f"`{FLAG}` and `attn_value_dim_head` cannot be combined here, because {self.width} dims"
            less = "raise `attn_value_dim_head` or lower `rotary_emb_dim`"
            raise FlagError([Finding(FLAG, f"{text} are rotated and a value has {values.width}; {less}")])
        return replace(values, rotated=True)
