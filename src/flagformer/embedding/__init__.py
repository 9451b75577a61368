"""Embeddings of inputs, and memory tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from flagformer.flow import InsertionPattern


class Memory(nn.Module, ABC):
    """Contract of the slot `memory`, built as `(dim)`: vectors that are interleaved with those of tokens.

    Attributes:
        pattern: where they are inserted.
    """

    pattern: InsertionPattern

    @abstractmethod
    def forward(self, like: Tensor) -> Tensor:
        """[M, D], on the device and with the dtype of `like`."""


class TokenScale(nn.Module, ABC):
    """Contract of the slot `token_scale`, built as `(width)`: acts on the token embedding alone."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """[B, T, E] -> [B, T, E]."""
