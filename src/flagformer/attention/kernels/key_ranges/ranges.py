"""Keys sorted by cluster and time, and the range of sorted keys of each query."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.ops.routing import Tokens


class KeyRanges(NamedTuple):
    """The key range of each sorted query; every tensor [B, H, ...] long.

    Attributes:
        by_query: [B, H, T], query indices in sorted order.
        by_key: [B, H, S], key indices in sorted order.
        start, end: [B, H, T], the range of sorted keys of each sorted query, in addition to its own key;
            both are non-decreasing.
        self_offset: the key index of the first query's own key.
        mask_self_unless_alone: whether a query attends to its own key only where its range is empty.
    """

    by_query: Tensor
    by_key: Tensor
    start: Tensor
    end: Tensor
    self_offset: int
    mask_self_unless_alone: bool

    @property
    def self_keys(self) -> slice:
        """The queries' own keys."""
        return slice(self.self_offset, self.self_offset + self.by_query.shape[2])

    def of(self, rows: slice, heads: slice) -> KeyRanges:
        """The ranges of some rows and heads."""
        by_query, by_key, start, end = (x[rows, heads] for x in self[:4])
        return KeyRanges(by_query, by_key, start, end, self.self_offset, self.mask_self_unless_alone)


def sorted_key_ranges(
    queries: Tokens, keys: Tokens, span: int, window: int, self_offset: int, mask_self_unless_alone: bool
) -> KeyRanges:
    """The `window` most recent earlier keys of each query's cluster, as ranges of the sorted keys.

    Args:
        span: larger than every position.
        self_offset, mask_self_unless_alone: see `KeyRanges`.
    """
    (code, by_query), (ordered, by_key) = queries.codes(span).sort(), keys.codes(span).sort()
    first = torch.searchsorted(ordered, code)
    begin = torch.searchsorted(ordered, code - code % span)
    start = torch.maximum(first - window, begin)
    return KeyRanges(by_query, by_key, start, first, self_offset, mask_self_unless_alone)
