"""From the last layer to logits."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.embedding.tokens import TokenEmbedding


class Head(nn.Module, ABC):
    """Contract of the slot `head`, built as `(dim, num_tokens)`."""

    @abstractmethod
    def forward(self, x: Tensor, embedding: TokenEmbedding) -> Tensor:
        """x [B, T, D] -> logits [B, T, V]."""

    @abstractmethod
    def product(self, x: Tensor, embedding: TokenEmbedding) -> tuple[Tensor, Tensor] | None:
        """[B, T, E] and [V, E], whose products the logits are; None where they are none."""
