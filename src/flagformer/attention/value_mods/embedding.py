"""Values with an embedding of the token's id (modded-nanogpt)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.attention.value_mods import ValueMod
from flagformer.embedding.tokens import TokenEmbedding
from flagformer.flags import Flag, component
from flagformer.flow import Dims, SideInputs


@component(
    "value_mod",
    select="attn_value_embed_tokens",
    kind="a",
    paper="arXiv:2410.17897",
    needs={"cached_values"},
)
class ValueEmbedding(ValueMod):
    """Values plus a learned embedding of the token: v = a v + b E[id], with learned a and b, initially 1/2.

    Each layer has its own table. Ids beyond its rows share them, modulo their number; memory tokens and
    prepended embeddings have none. Departure: the paper adds the values of the first layer.
    """

    reads_token_ids = True

    def __init__(
        self,
        dims: Dims,
        groups: int,
        *,
        count: Annotated[
            int,
            Flag(
                "attn_value_embed_tokens",
                "rows of a table of embeddings by id that are added to the values of self-attention",
                ge=0,
                example=11,
            ),
        ],
    ) -> None:
        super().__init__()
        self.count, self.shape = count, (groups, dims.dim_value)
        self.table = TokenEmbedding(count, groups * dims.dim_value)
        self.mix = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.constant_(self.mix, 0.5)

    def init_neutral(self) -> float:
        """Start as v = v + 0 E[id]."""
        with torch.no_grad():
            nn.init.ones_(self.mix[:1])
            nn.init.zeros_(self.mix[1:])
        return 1.0

    def forward(self, v: Tensor, x: Tensor, side: SideInputs) -> Tensor:
        ids = side.token_ids
        if ids is None:
            raise ValueError(
                "`token_ids` is required, because the layers read embeddings of ids "
                "(`attn_value_embed_tokens`): give it with `x`, or use a TransformerWrapper"
            )
        found = self.table(ids.clamp(min=0) % self.count) * (ids >= 0)[..., None]
        by_head = found.unflatten(2, self.shape).transpose(1, 2)  # [1 or B, G, T, V]
        return self.mix[0] * v + self.mix[1] * by_head
