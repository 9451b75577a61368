"""The settings of muP: the sizes of the base model."""

from __future__ import annotations

from pydantic import Field, field_validator

from flagformer.lab.train.block import Block

SIZES = ("dim", "depth", "heads", "attn_dim_head", "attn_kv_heads", "ff_inner_dim", "emb_dim")


class Mup(Block):
    """muP for AdamW, relative to a base model whose learning rate is known."""

    base: dict[str, int] = Field(
        description="The sizes in which the base model differs, such as {dim: 128, heads: 4}; with `depth`, "
        "residual branches are scaled too (depth muP)."
    )

    @field_validator("base")
    @classmethod
    def _known_sizes(cls, base: dict[str, int]) -> dict[str, int]:
        for name, size in base.items():
            if name not in SIZES:
                raise ValueError(f"`mup.base` must hold sizes ({', '.join(SIZES)}), but holds {name!r}")
            if size < 1:
                raise ValueError(f"`mup.base.{name}` must be at least 1, but is {size}")
        if "dim" not in base:
            raise ValueError("`mup.base` must hold `dim`, the width of the base model; add it")
        return base
