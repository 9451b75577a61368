"""Projections of tokens to queries, keys and values."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn


class Projection(nn.Module, ABC):
    """Contract of the slot `projection`; `groups` is the number G of key/value heads.

    Built as `(dims, cross, shared)`: for self-attention `forward` gives all three, for cross-attention
    `queries` and `keys` read their own sources. Under `shared` the keys are the values too.
    """

    groups: int
    shared_qk = False  # whether keys are queries

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> q [B, H, T, K], k [B, G, T, K], v [B, G, T, V]."""

    @abstractmethod
    def queries(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, H, T, K]."""

    @abstractmethod
    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context [B, S, D_context] -> k [B, G, S, K], v [B, G, S, V]."""
