"""The factor of token embeddings, or none."""

from __future__ import annotations

from typing import Annotated

from torch import Tensor

from flagformer.embedding import TokenScale
from flagformer.flags import Flag, component


@component("token_scale")
class NoTokenScale(TokenScale):
    """Token embeddings as they are."""

    def __init__(self, width: int) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> Tensor:
        return x


@component("token_scale", select="embedding_scale", paper="arXiv:1706.03762, section 3.4")
class FixedTokenScale(TokenScale):
    """Token embeddings times a number, in the paper the square root of their width."""

    def __init__(
        self,
        width: int,
        *,
        factor: Annotated[
            bool | float | None,
            Flag(
                "embedding_scale",
                "factor of token embeddings; True: the root of their width (Gemma); None: 1",
                ge=1e-6,
                example=2.0,
            ),
        ] = None,
    ) -> None:
        super().__init__()
        self.factor = width**0.5 if factor is True else float(factor or 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor
