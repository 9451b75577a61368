"""Memory tokens: learned vectors in a row, in addition to its tokens (arXiv:2006.11527), or none."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.embedding import Memory
from flagformer.flags import Flag, component
from flagformer.flow import InsertionPattern


@component("memory")
class NoMemory(Memory):
    """No memory tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pattern, self.dim = InsertionPattern(), dim

    def forward(self, like: Tensor) -> Tensor:
        return like.new_empty(0, self.dim)


@component(
    "memory",
    select="num_memory_tokens",
    paper="arXiv:2006.11527, section 3.1",
    needs={"inserted_tokens"},
)
class MemoryTokens(Memory):
    """M learned vectors in front of every row, or of every block of so many tokens, that see and are seen.

    They start as token embeddings do, a normal distribution of standard deviation D ** -0.5. They have no
    absolute position; relative ones count them.
    """

    def __init__(
        self,
        dim: int,
        *,
        count: Annotated[
            int, Flag("num_memory_tokens", "learned tokens M added to each row (2006.11527)", ge=0)
        ],
        every: Annotated[
            int | None,
            Flag(
                "memory_tokens_interspersed_every",
                "memory tokens precede every block of this many tokens; None: the row",
                ge=1,
            ),
        ] = None,
    ) -> None:
        super().__init__()
        self.pattern = InsertionPattern(count) if every is None else InsertionPattern(count, every)
        self.tokens = nn.Parameter(torch.empty(count, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.tokens, std=self.tokens.shape[1] ** -0.5)

    def forward(self, like: Tensor) -> Tensor:
        # a copy: FSDP2 frees a gathered parameter after the forward
        return self.tokens.to(like.dtype, copy=True)
