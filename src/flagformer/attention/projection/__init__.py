"""Projections of tokens to queries, keys and values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor, nn

from flagformer.flow import CacheEntry


class Projection(nn.Module, ABC):
    """Contract of the slot `projection`; `groups` is the number G of key/value heads.

    Built as `(dims, cross, shared)`: for self-attention `forward` gives all three, for cross-attention
    `queries` and `keys` read their own sources. Under `shared` the keys are the values too.

    By default keys and values are cached, after their norm and rotation. A projection whose cache is narrower
    sets `entry_widths` and `rotary_part`, and overrides `cache_entry`, `context_entry` and `expand`; `absorb`
    and `of_absorbed` if queries can be multiplied with the cached tensors themselves.

    Attributes:
        entry_widths: the width of each tensor that is cached for a token, by name; each has one head that
            serves all query heads. None: keys and values are cached.
        rotary_part: the tensor of an entry whose first dims are the first dims of all keys, to which the
            rotation is applied before it is cached.
        rotary_dims: the number of these dims; None: all of the tensor.
    """

    groups: int
    shared_qk = False  # whether keys are queries
    shared_kv = False  # whether values are keys
    entry_widths: Mapping[str, int] | None = None
    rotary_part: str = "k"
    rotary_dims: int | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """x [B, T, D] -> q [B, H, T, K], k [B, G, T, K], v [B, G, T, V]."""

    @abstractmethod
    def queries(self, x: Tensor) -> Tensor:
        """x [B, T, D] -> [B, H, T, K]."""

    @abstractmethod
    def keys(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context [B, S, D_context] -> k [B, G, S, K], v [B, G, S, V]."""

    def cache_entry(self, x: Tensor) -> tuple[Tensor, CacheEntry]:
        """x [B, T, D] -> q [B, H, T, K], and the tensors to cache, before norm and rotation."""
        q, k, v = self(x)
        return q, {"k": k, "v": v}

    def context_entry(self, context: Tensor) -> CacheEntry:
        """context [B, S, D_context] -> the tensors to cache in cross-attention, before the norm."""
        k, v = self.keys(context)
        return {"k": k, "v": v}

    def expand(self, entry: CacheEntry) -> tuple[Tensor, Tensor]:
        """The tensors of an entry -> k [B, G, S, K], v [B, G, S, V]."""
        return entry["k"], entry["v"]

    def absorb(self, q: Tensor, entry: CacheEntry) -> tuple[Tensor, Tensor] | None:
        """Queries for attention over an entry that is not expanded, if that takes fewer products.

        Args:
            q: [B, H, T, K], after the rotation.
            entry: the tensors of S tokens.

        Returns:
            Queries [B, H, T, W] and one tensor [B, 1, S, W] of keys that are values too; None: expand it.
        """
        return None

    def of_absorbed(self, out: Tensor) -> Tensor:
        """The output of attention over the tensor of `absorb`, [B, H, T, W] -> values [B, H, T, V]."""
        raise NotImplementedError("`absorb` gave no queries")
