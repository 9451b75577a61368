"""Sorted queries in blocks, each block against one stretch of sorted keys; like blocks served together."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.ops.key_ranges import KeyRanges

BLOCK = 64  # queries: smaller ones read keys more often, larger ones meet more that is none of theirs
SCORES = 1 << 18  # for each thread, of the blocks served together: they stay in a core's cache
FAR = 1e30  # taken off a score for each key beyond a query's stretch


class BlockBatch(NamedTuple):
    """I blocks of g queries, each against a stretch of s keys.

    Attributes:
        queries: [I, g] long, numbers of queries in B * H * T.
        keys: [I, s] long, numbers of keys in B * H * S.
        middle, half: [I, g, 1], of each query's stretch, counted in the s keys, times FAR: those no farther
            from its middle than half its length are met; half is negative where none is.
        of_queries, of_keys: where what is found for the queries and keys stands, one behind the other.
    """

    queries: Tensor
    keys: Tensor
    center: Tensor
    half_width: Tensor
    of_queries: slice
    of_keys: slice

    def gather_rows(self, x: Tensor) -> Tensor:
        """What the queries have in x [B, H, T], [I, g, 1]."""
        return x.view(-1).index_select(0, self.queries.flatten()).view_as(self.half_width)

    def gather_queries(self, x: Tensor) -> Tensor:
        """The queries' places in x [places, K], [I, g, K]."""
        return x[self.of_queries].view(*self.queries.shape, -1)

    def gather_keys(self, x: Tensor) -> Tensor:
        """The keys' places in x [places, K], [I, s, K]."""
        return x[self.of_keys].view(*self.keys.shape, -1)

    def range_mask(self, most: Tensor) -> Tensor:
        """[I, g, s]: `most` [I, g, 1] of a query's stretch, less than -FAR / 4 beyond.

        Made of numbers: comparing and filling take several times as long.
        """
        numbers = torch.arange(self.keys.shape[1], device=most.device, dtype=most.dtype).mul_(FAR)
        apart = (numbers - self.center).abs_()
        return torch.minimum(torch.sub(self.half_width, apart, out=apart), most, out=apart)


class KeyRangeBlocks(NamedTuple):
    """N blocks of g queries, the longest stretches first.

    Attributes:
        queries, low, high: [N, g] long, numbers of queries in B * H * T and their stretches in `keys`; a last
            block is filled with its last query, that meets nobody.
        keys: [B * H * S] long, numbers of the sorted keys.
        rank: [N] long, which of these each block of the sorted queries is.
        where: [B * H * T] long, the place of each query in N * g.
        cuts: of each batch the first block, the one behind the last, and the keys of the longest.
    """

    queries: Tensor
    start: Tensor
    end: Tensor
    keys: Tensor
    rank: Tensor
    where: Tensor
    splits: list[tuple[int, int, int]]

    @staticmethod
    def of(stretches: KeyRanges) -> KeyRangeBlocks:
        asking = _flat(stretches.by_query, stretches.by_query)
        keys, low, high = (
            _flat(x, stretches.by_key) for x in (stretches.by_key, stretches.low, stretches.high)
        )
        missing = -asking.shape[1] % BLOCK
        nobody = high[:, -1:]
        queries, low, high = (
            torch.cat([x, filler[:, -1:].expand(-1, missing)], dim=1).view(-1, BLOCK)
            for x, filler in ((asking, asking), (low, nobody), (high, nobody))
        )
        spans, order = (high[:, -1] - low[:, 0]).sort(descending=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        places = (rank[:, None] * BLOCK + torch.arange(BLOCK, device=rank.device)).view(len(asking), -1)
        places = places[:, : asking.shape[1]].flatten()
        where = torch.empty_like(places).scatter_(0, asking.flatten(), places)
        queries, low, high = (x.index_select(0, order) for x in (queries, low, high))
        return KeyRangeBlocks(queries, low, high, keys.flatten(), rank, where, _cuts(spans.tolist()))

    def batches(self, kind: torch.dtype) -> Iterator[BlockBatch]:
        places = self.places()
        for first, last, longest in self.splits:
            start = self.start[first:last, :1]
            stretch = torch.arange(longest, device=start.device)
            keys = self.keys[(start + stretch).clamp_(max=len(self.keys) - 1)]
            begins, ends = ((x[first:last] - start)[..., None].to(kind) for x in (self.start, self.end))
            middle, half = (begins + ends - 1) * (FAR / 2), (ends - begins - 0.5) * (FAR / 2)
            of_queries, of_keys = slice(first * BLOCK, last * BLOCK), slice(places[first], places[last])
            yield BlockBatch(self.queries[first:last], keys, middle, half, of_queries, of_keys)

    def places(self) -> list[int]:
        """Where each block's keys begin, those of all batches one behind the other; and where all end."""
        sizes = (longest for first, last, longest in self.splits for _ in range(first, last))
        return list(accumulate(sizes, initial=0))

    def to_queries(self, x: Tensor) -> Tensor:
        """What was found for the queries [N * g, ...], [B * H * T, ...]."""
        return x.index_select(0, self.where)


def _flat(x: Tensor, of: Tensor) -> Tensor:
    """Numbers in `of` [B, H, n] -> numbers in B * H * n, [B * H, ...]."""
    rows, length = of.shape[0] * of.shape[1], of.shape[2]
    ahead = torch.arange(0, rows * length, length, device=x.device)
    return x.flatten(0, 1) + ahead[:, None]


def _cuts(spans: list[int]) -> list[tuple[int, int, int]]:
    scores, first, cuts = SCORES * torch.get_num_threads(), 0, []
    while first < len(spans):
        longest = max(spans[first], 1)
        last = min(first + max(scores // (BLOCK * longest), 1), len(spans))
        cuts.append((first, last, longest))
        first = last
    return cuts
