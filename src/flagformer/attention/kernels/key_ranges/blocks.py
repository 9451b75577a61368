"""Sorted queries in blocks, each with one range of sorted keys; blocks of similar size form one batch."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.attention.kernels.key_ranges.ranges import KeyRanges

BLOCK = 64  # queries: smaller blocks read keys more often, larger ones compute more masked scores
SCORES = 1 << 18  # scores of a batch of blocks, for each thread: they stay in a core's cache
FAR = 1e30  # subtracted from a score for each key position outside a query's range


class BlockBatch(NamedTuple):
    """I blocks of g queries, each with a range of s keys.

    Attributes:
        queries: [I, g] long, query indices in B * H * T.
        keys: [I, s] long, key indices in B * H * S.
        center, half_width: [I, g, 1], of each query's range, as indices of the s keys, times FAR: a query
            attends to the keys within `half_width` of `center`; `half_width` is negative for empty ranges.
        query_slice, key_slice: where the results for the queries and keys are, among those of all batches.
    """

    queries: Tensor
    keys: Tensor
    center: Tensor
    half_width: Tensor
    query_slice: slice
    key_slice: slice

    def gather_rows(self, x: Tensor) -> Tensor:
        """The values of the queries in x [B, H, T], as [I, g, 1]."""
        return x.view(-1).index_select(0, self.queries.flatten()).view_as(self.half_width)

    def gather_queries(self, x: Tensor) -> Tensor:
        """View of the queries' rows in x [rows, K], as [I, g, K]."""
        return x[self.query_slice].view(*self.queries.shape, -1)

    def gather_keys(self, x: Tensor) -> Tensor:
        """View of the keys' rows in x [rows, K], as [I, s, K]."""
        return x[self.key_slice].view(*self.keys.shape, -1)

    def range_mask(self, inside: Tensor) -> Tensor:
        """[I, g, s]: `inside` [I, g, 1] within a query's range, less than -FAR / 4 outside.

        Computed arithmetically: comparing and filling take several times as long.
        """
        index = torch.arange(self.keys.shape[1], device=inside.device, dtype=inside.dtype).mul_(FAR)
        distance = (index - self.center).abs_()
        return torch.minimum(torch.sub(self.half_width, distance, out=distance), inside, out=distance)


class KeyRangeBlocks(NamedTuple):
    """N blocks of g queries, the longest key ranges first.

    Attributes:
        queries, start, end: [N, g] long, query indices in B * H * T and their ranges in `keys`; a last block
            is padded with its last query and empty ranges.
        keys: [B * H * S] long, sorted key indices.
        rank: [N] long, the position of each block of sorted queries in this order.
        where: [B * H * T] long, the position of each query in N * g.
        splits: for each batch the first block, the end (exclusive), and the longest key range.
    """

    queries: Tensor
    start: Tensor
    end: Tensor
    keys: Tensor
    rank: Tensor
    where: Tensor
    splits: list[tuple[int, int, int]]

    @staticmethod
    def of(ranges: KeyRanges) -> KeyRangeBlocks:
        by_query = _flat(ranges.by_query, ranges.by_query)
        keys, start, end = (_flat(x, ranges.by_key) for x in (ranges.by_key, ranges.start, ranges.end))
        missing = -by_query.shape[1] % BLOCK
        last = end[:, -1:]
        queries, start, end = (
            torch.cat([x, padding[:, -1:].expand(-1, missing)], dim=1).view(-1, BLOCK)
            for x, padding in ((by_query, by_query), (start, last), (end, last))
        )
        lengths, order = (end[:, -1] - start[:, 0]).sort(descending=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        positions = rank[:, None] * BLOCK + torch.arange(BLOCK, device=rank.device)
        positions = positions.view(len(by_query), -1)[:, : by_query.shape[1]].flatten()
        where = torch.empty_like(positions).scatter_(0, by_query.flatten(), positions)
        queries, start, end = (x.index_select(0, order) for x in (queries, start, end))
        return KeyRangeBlocks(queries, start, end, keys.flatten(), rank, where, _splits(lengths.tolist()))

    def batches(self, dtype: torch.dtype) -> Iterator[BlockBatch]:
        offsets = self.key_offsets()
        for first, last, longest in self.splits:
            begin = self.start[first:last, :1]
            steps = torch.arange(longest, device=begin.device)
            keys = self.keys[(begin + steps).clamp_(max=len(self.keys) - 1)]
            start, end = ((x[first:last] - begin)[..., None].to(dtype) for x in (self.start, self.end))
            center, half_width = (start + end - 1) * (FAR / 2), (end - start - 0.5) * (FAR / 2)
            query_slice = slice(first * BLOCK, last * BLOCK)
            key_slice = slice(offsets[first], offsets[last])
            yield BlockBatch(self.queries[first:last], keys, center, half_width, query_slice, key_slice)

    def key_offsets(self) -> list[int]:
        """The first key row of each block, over all batches, and the total."""
        sizes = (longest for first, last, longest in self.splits for _ in range(first, last))
        return list(accumulate(sizes, initial=0))

    def to_queries(self, x: Tensor) -> Tensor:
        """Results of the blocks [N * g, ...] in the order of the queries [B * H * T, ...]."""
        return x.index_select(0, self.where)


def _flat(x: Tensor, of: Tensor) -> Tensor:
    """Indices into the last dimension of `of` [B, H, n] -> indices into B * H * n, [B * H, ...]."""
    rows, length = of.shape[0] * of.shape[1], of.shape[2]
    offsets = torch.arange(0, rows * length, length, device=x.device)
    return x.flatten(0, 1) + offsets[:, None]


def _splits(lengths: list[int]) -> list[tuple[int, int, int]]:
    scores, first, splits = SCORES * torch.get_num_threads(), 0, []
    while first < len(lengths):
        longest = max(lengths[first], 1)
        last = min(first + max(scores // (BLOCK * longest), 1), len(lengths))
        splits.append((first, last, longest))
        first = last
    return splits
