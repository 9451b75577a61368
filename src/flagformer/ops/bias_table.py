"""Attention whose bias and mask are a table of distances: no tensor of queries times keys is ever kept.

Queries go in chunks. Keys are turned around, so that distances grow along queries *and* keys: then the bias
of a chunk is a strided view of the table (neighbouring rows overlap), read by torch's fused kernel in place.
Exact, forward and backward; keys that no query of a chunk sees are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.lengths import LONG_TABLE
from flagformer.ops.prune_bias import prune_bias, strips

# Queries in a chunk, when the table is long and when it is short. Forward and backward, n 2048, 8 heads of
# 64, 2 threads, ms in chunks of 128 and 256: ALiBi 136, 87; a learned bias 113, 117; one of 600 distances
# 72, 84; a window of 256 43, 45.
CHUNKS = (256, 128)
PAD = CHUNKS[0] - 1


class RelativeRange(NamedTuple):
    """Where a table of distances lies.

    Attributes:
        offset: place of the first query minus place of the first key.
        nearest: the distance of the table's first entry; no query sees a key that is nearer.
        same_from: entries from this distance on are equal, and none of them is out of sight; -1: unknown.
    """

    offset: int
    nearest: int
    same_from: int = -1


class Tile(NamedTuple):
    """Queries start ... stop and keys first ... end, by their places; keys below `far` share one bias."""

    start: int
    stop: int
    first: int
    end: int
    saturated: int

    def keys(self, total: int) -> slice:
        """All keys, among keys turned around."""
        return slice(total - self.end, total - self.first)

    def near_keys(self, total: int) -> slice:
        return slice(total - self.end, total - self.saturated)

    def far_keys(self, total: int) -> slice:
        return slice(total - self.saturated, total - self.first)


class BiasTable:
    """The biases of a forward, and which keys are seen, chunk by chunk.

    Args:
        biases: [1 or H, L], of the distances nearest ... nearest + L - 1.
        groups: [B, S] long or None: tokens of different numbers never meet; a padded key of group g has
            -1 - g, and no query sees it.
    """

    def __init__(
        self, biases: Tensor, groups: Tensor | None, span: RelativeRange, dtype: torch.dtype
    ) -> None:
        # beyond both ends there is nothing to see: what overlapping rows read there
        self.biases = F.pad(biases.to(dtype), (PAD, PAD), value=float("-inf")).contiguous()
        self.span, self.length = span, biases.shape[1]
        self.chunk = CHUNKS[self.length < LONG_TABLE]
        self.keys = self.queries = None
        if groups is not None:
            self.keys = groups.flip(1)
            self.queries = torch.where(groups < 0, -1 - groups, groups)[:, span.offset :]

    def tiles(self, queries: int, keys: int) -> Iterator[Tile]:
        offset, nearest, same_from = self.span
        farthest = nearest + self.length - 1
        for start in range(0, queries, self.chunk):
            stop = min(start + self.chunk, queries)
            first = max(0, offset + start - farthest)
            end = min(keys, offset + stop - nearest)
            far = min(max(first, offset + start - same_from + 1), end) if same_from >= 0 else first
            yield Tile(start, stop, first, end, far)

    def place(self, tile: Tile) -> int:
        """Where in `biases` the last key and the first query of a tile stand."""
        return self.span.offset + tile.start - (tile.end - 1) - self.span.nearest + PAD

    def mask(self, tile: Tile, keys: slice) -> Tensor:
        """[1 or B, 1 or H, queries, keys], added to the scores; keys from the tile's last one on."""
        heads, width = self.biases.shape
        size = (1, heads, tile.stop - tile.start, keys.stop - keys.start)
        view = self.biases.as_strided(size, (0, width, 1, 1), self.place(tile))
        return view if self.keys is None else view.masked_fill(self.masked(tile, keys), float("-inf"))

    def masked(self, tile: Tile, keys: slice) -> Tensor:
        """[B, 1, queries, keys] bool, True for pairs of different groups."""
        assert self.queries is not None
        assert self.keys is not None
        return (self.queries[:, tile.start : tile.stop, None] != self.keys[:, None, keys])[:, None]

    def far_mask(self, tile: Tile, keys: slice) -> Tensor | None:
        """The mask of keys whose bias is the same; None when all are seen."""
        if self.keys is None:
            return None
        unseen = self.masked(tile, keys)
        zeros = torch.zeros(unseen.shape, dtype=self.biases.dtype, device=unseen.device)
        return zeros.masked_fill_(unseen, float("-inf"))

    @property
    def same(self) -> int:
        """Where in the table the bias of all far keys stands."""
        return self.span.same_from - self.span.nearest


class HeadGroup(NamedTuple):
    """Heads that see about as far.

    Attributes:
        heads: which.
        table: what they see.
        distances: the part of all biases that `table` holds.
    """

    heads: slice
    table: BiasTable
    distances: slice


def head_groups(
    q: Tensor, k: Tensor, biases: Tensor, groups: Tensor | None, span: RelativeRange, scale: float
) -> Iterator[HeadGroup]:
    """The biases of a forward, without what no weight can show.

    Shared biases (of a window) stay whole, and so do those that are the same from some distance on.
    """
    dtype, count = accum_dtype(q.dtype), biases.shape[1]
    at_self = -span.nearest
    if len(biases) == 1 or span.same_from >= 0 or not 0 <= at_self < count:
        yield HeadGroup(slice(None), BiasTable(biases, groups, span, dtype), slice(0, count))
        return
    seen = prune_bias(biases.to(dtype), q, k, at_self, scale, dtype)
    least = -(-torch.get_num_threads() // len(q))
    for heads, distances in strips(seen, least):
        part = RelativeRange(span.offset, span.nearest + distances.start)
        yield HeadGroup(heads, BiasTable(seen[heads, distances], groups, part, dtype), distances)


def by_heads(like: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Zeros [B, H, T, width], stored with heads behind time as projections store them."""
    batch, heads, length = like.shape[:3]
    return like.new_zeros(batch, length, heads, width, dtype=dtype).transpose(1, 2)
