"""Sizes and settings shared by the components of a stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from flagformer.flags import Flag, component


@component("dims")
@dataclass(frozen=True, kw_only=True)
class Dims:
    """The sizes and settings of a stack, which every component receives."""

    dim: Annotated[int, Flag("dim", "model width D", ge=1)]
    heads: Annotated[int, Flag("heads", "attention heads H", ge=1)] = 8
    dim_head: Annotated[int, Flag("attn_dim_head", "width K of one head", ge=1)] = 64
    causal: Annotated[bool, Flag("causal", "causal self-attention (fixed by Encoder and Decoder)")] = False
    dim_context: Annotated[
        int | None,
        Flag(
            "cross_attn_dim_context",
            "width of the context; None: `dim`",
            ge=1,
            example_with={"cross_attend": True},
        ),
    ] = None
    context_dropout: Annotated[
        float,
        Flag(
            "cross_attn_tokens_dropout",
            "fraction of context tokens that all cross-attention masks in training (2202.07765)",
            ge=0,
            lt=1,
            example=0.25,
            example_with={"cross_attend": True},
        ),
    ] = 0.0
    disable_abs_pos_emb: Annotated[
        bool | None,
        Flag(
            "disable_abs_pos_emb",
            "no absolute positions in wrappers; None: if the layers have relative ones",
        ),
    ] = None
    # no flag: the width V of a value head in the attention under construction; None: K
    value_width: int | None = None
    # no flag: how many dims of a head the rotation of the attention under construction turns
    rotary_width: int = 0

    @property
    def dim_value(self) -> int:
        """V."""
        return self.dim_head if self.value_width is None else self.value_width
