"""Keys in the order of clusters, and the stretch of them that each query meets."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class KeyRanges(NamedTuple):
    """Who meets whom; every tensor [B, H, ...] long.

    Attributes:
        by_query: [B, H, T], the queries in order.
        by_key: [B, H, S], the keys in order.
        low, high: [B, H, T], the sorted keys that each sorted query meets, beside its own; neither ever goes
            back from one query to the next.
        own: of the keys, which is the first query's own.
        alone: whether a query meets its own key only where it meets no other.
    """

    by_query: Tensor
    by_key: Tensor
    low: Tensor
    high: Tensor
    own: int
    alone: bool

    @property
    def mine(self) -> slice:
        """The queries' own keys."""
        return slice(self.own, self.own + self.by_query.shape[2])

    def of(self, rows: slice, heads: slice) -> KeyRanges:
        """Those of some rows and heads."""
        by_query, by_key, low, high = (x[rows, heads] for x in self[:4])
        return KeyRanges(by_query, by_key, low, high, self.own, self.alone)
