"""Keys in the order of clusters, and the stretch of them that each query meets: in batches of like blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # queries: smaller ones read keys more often, larger ones meet more that is none of theirs
SCORES = 1 << 18  # for each thread, of the blocks served together: they stay in a core's cache
FAR = 1e30  # taken off a score for each key beyond a query's stretch


class Stretches(NamedTuple):
    """Who meets whom; every tensor [B, H, ...] long.

    Attributes:
        by_query: [B, H, T], the queries in order.
        by_key: [B, H, S], the keys in order.
        low, high: [B, H, T], the sorted keys that each sorted query meets, beside its own.
        own: of the keys, which is the first query's own.
        alone: whether a query meets its own key only where it meets no other.
    """

    by_query: Tensor
    by_key: Tensor
    low: Tensor
    high: Tensor
    own: int
    alone: bool


class Batch(NamedTuple):
    """I blocks of g queries, each against a stretch of s keys.

    Attributes:
        queries: [I, g] long, numbers of queries in B * H * T.
        keys: [I, s] long, numbers of keys in B * H * S.
        middle, half: [I, g, 1], of each query's stretch, counted in the s keys, times FAR: those no farther
            from its middle than half its length are met; half is negative where none is.
    """

    queries: Tensor
    keys: Tensor
    middle: Tensor
    half: Tensor

    def of(self, x: Tensor) -> Tensor:
        """What the queries have in x [B, H, T], [I, g, 1]."""
        return x.view(-1).index_select(0, self.queries.flatten()).view_as(self.half)

    def put(self, x: Tensor, values: Tensor) -> None:
        """Writes values [I, g, 1] to the places of the queries in x [B, H, T]."""
        x.view(-1).index_copy_(0, self.queries.flatten(), values.flatten())

    def inside(self, most: Tensor) -> Tensor:
        """[I, g, s]: `most` [I, g, 1] of a query's stretch, less than -FAR / 4 beyond.

        Made of numbers: comparing and filling take several times as long.
        """
        numbers = torch.arange(self.keys.shape[1], device=most.device, dtype=most.dtype).mul_(FAR)
        apart = (numbers - self.middle).abs_()
        return torch.minimum(torch.sub(self.half, apart, out=apart), most, out=apart)


def batches_of(stretches: Stretches, kind: torch.dtype) -> Iterator[Batch]:
    """All blocks, the longest stretches first; a last block of fewer queries apart from the others."""
    ahead = _ahead(stretches.by_query, stretches.by_query), _ahead(stretches.by_query, stretches.by_key)
    parts = stretches.by_query + ahead[0], stretches.low + ahead[1], stretches.high + ahead[1]
    by_key = (stretches.by_key + ahead[1]).flatten()
    length = stretches.low.shape[2]
    whole = length - length % BLOCK
    for first, last in ((0, whole), (whole, length)):
        if first < last:
            of_size = [part[:, :, first:last].reshape(-1, min(BLOCK, last - first)) for part in parts]
            yield from _of_size(of_size, by_key, kind)


def _ahead(queries: Tensor, of: Tensor) -> Tensor:
    """[B, H, 1]: how many of `of` [B, H, n] stand in the rows and heads before."""
    batch, heads, length = of.shape
    return torch.arange(0, batch * heads * length, length, device=queries.device).view(batch, heads, 1)


def _of_size(parts: list[Tensor], by_key: Tensor, kind: torch.dtype) -> Iterator[Batch]:
    """Of blocks [N, g] of queries and both ends of their stretches."""
    spans, order = (parts[2][:, -1] - parts[1][:, 0]).sort(descending=True)
    queries, low, high = (part.index_select(0, order) for part in parts)
    lengths, scores, first = spans.tolist(), SCORES * torch.get_num_threads(), 0
    while first < len(lengths):
        longest = max(lengths[first], 1)
        last = first + max(scores // (low.shape[1] * longest), 1)
        start = low[first:last, :1]
        places = (start + torch.arange(longest, device=low.device)).clamp_(max=len(by_key) - 1)
        begins, ends = ((part[first:last] - start)[..., None].to(kind) for part in (low, high))
        middle, half = (begins + ends - 1) * (FAR / 2), (ends - begins - 0.5) * (FAR / 2)
        yield Batch(queries[first:last], by_key[places], middle, half)
        first = last
