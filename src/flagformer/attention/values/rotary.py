"""Values that are turned by their own positions, as keys are."""

from __future__ import annotations

from dataclasses import replace

from flagformer.attention.values import ValueRule, Values
from flagformer.flags import Finding, FlagError, component
from flagformer.flow import Dims
from flagformer.position import Rotation

FLAG = "attn_rotary_embed_values"


@component("values", select=FLAG, needs={"value_rotation"}, kind="a")
class RotaryValues(ValueRule):
    """Each value is turned by its own position: what a head gathers tells where it stood.

    Outputs then depend on the position itself, not on distances alone.
    """

    def __init__(self, dims: Dims, rotation: Rotation | None) -> None:
        self.turned = None if rotation is None else rotation.width
        if self.turned == 0:
            text = f"`{FLAG}` needs a rotation, because it turns values as that turns keys"
            raise FlagError([Finding(FLAG, f"{text}; set `rotary_pos_emb=True`, or leave it out")])

    def __call__(self, values: Values) -> Values:
        if self.turned is not None and self.turned > values.width:
            text = f"`{FLAG}` and `attn_value_dim_head` cannot be combined here, because {self.turned} dims"
            less = "raise `attn_value_dim_head` or lower `rotary_emb_dim`"
            raise FlagError([Finding(FLAG, f"{text} are turned and a value has {values.width}; {less}")])
        return replace(values, rotated=True)
