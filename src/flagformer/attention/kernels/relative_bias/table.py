"""Attention whose bias and mask depend on the distance: no tensor of queries times keys is saved.

Queries are processed in chunks. Keys are reversed in time, so that distances grow along queries *and* keys:
the bias of a chunk is then a strided view of the table (neighbouring rows overlap), which torch's fused
kernel reads in place. Exact, forward and backward; keys that are masked for a whole chunk are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.attention.kernels.relative_bias.prune import group_heads, prune_bias
from flagformer.flow import RelativeRange
from flagformer.ops.full_precision import accum_dtype
from flagformer.ops.lengths import LONG_TABLE

# Queries in a chunk, when the table is long and when it is short. Forward and backward, n 2048, 8 heads of
# 64, 2 threads, ms in chunks of 128 and 256: ALiBi 136, 87; a learned bias 113, 117; one of 600 distances
# 72, 84; a window of 256 43, 45.
CHUNKS = (256, 128)
PAD = CHUNKS[0] - 1


class Tile(NamedTuple):
    """Queries start ... stop and keys first ... end, by position; keys below `saturated` share one bias."""

    start: int
    stop: int
    first: int
    end: int
    saturated: int

    def keys(self, total: int) -> slice:
        """All keys of the tile, as a slice of the reversed keys."""
        return slice(total - self.end, total - self.first)

    def near_keys(self, total: int) -> slice:
        return slice(total - self.end, total - self.saturated)

    def saturated_keys(self, total: int) -> slice:
        return slice(total - self.saturated, total - self.first)


class BiasTable:
    """The biases and masks of a forward, chunk by chunk.

    Args:
        biases: [1 or H, L], for the distances nearest ... nearest + L - 1.
        groups: [B, S] long or None: segment ids, attention stays within a segment; a padded key of segment g
            has -1 - g and is masked.
    """

    def __init__(
        self, biases: Tensor, groups: Tensor | None, span: RelativeRange, dtype: torch.dtype
    ) -> None:
        # overlapping rows read beyond both ends, where everything is masked
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
            saturated = min(max(first, offset + start - same_from + 1), end) if same_from >= 0 else first
            yield Tile(start, stop, first, end, saturated)

    def index(self, tile: Tile) -> int:
        """The index in `biases` of the last key and the first query of a tile."""
        return self.span.offset + tile.start - (tile.end - 1) - self.span.nearest + PAD

    def mask(self, tile: Tile, keys: slice) -> Tensor:
        """[1 or B, 1 or H, queries, keys], added to the scores; `keys` begins with the tile's last key."""
        heads, width = self.biases.shape
        size = (1, heads, tile.stop - tile.start, keys.stop - keys.start)
        view = self.biases.as_strided(size, (0, width, 1, 1), self.index(tile))
        return view if self.keys is None else view.masked_fill(self.masked(tile, keys), float("-inf"))

    def masked(self, tile: Tile, keys: slice) -> Tensor:
        """[B, 1, queries, keys] bool, True (masked) for pairs of different segments."""
        assert self.queries is not None
        assert self.keys is not None
        return (self.queries[:, tile.start : tile.stop, None] != self.keys[:, None, keys])[:, None]

    def saturated_mask(self, tile: Tile, keys: slice) -> Tensor | None:
        """The additive mask of keys that share one bias; None when all are allowed."""
        if self.keys is None:
            return None
        masked = self.masked(tile, keys)
        zeros = torch.zeros(masked.shape, dtype=self.biases.dtype, device=masked.device)
        return zeros.masked_fill_(masked, float("-inf"))

    @property
    def saturated_index(self) -> int:
        """The index in the table of the bias that all saturated keys share."""
        return self.span.same_from - self.span.nearest


class HeadGroup(NamedTuple):
    """Neighbouring heads with a similar range of distances.

    Attributes:
        heads: indices of the heads.
        table: their biases.
        distances: the part of all distances that `table` covers.
    """

    heads: slice
    table: BiasTable
    distances: slice


def head_groups(
    q: Tensor, k: Tensor, biases: Tensor, groups: Tensor | None, span: RelativeRange, scale: float
) -> Iterator[HeadGroup]:
    """The biases of a forward by groups of heads, without distances whose weights are lost in rounding.

    Biases shared by all heads (a window) and saturated biases are not pruned.
    """
    dtype, count = accum_dtype(q.dtype), biases.shape[1]
    at_self = -span.nearest
    if len(biases) == 1 or span.same_from >= 0 or not 0 <= at_self < count:
        yield HeadGroup(slice(None), BiasTable(biases, groups, span, dtype), slice(0, count))
        return
    pruned = prune_bias(biases.to(dtype), q, k, at_self, scale, dtype)
    min_heads = -(-torch.get_num_threads() // len(q))
    for heads, distances in group_heads(pruned, min_heads):
        part = RelativeRange(span.offset, span.nearest + distances.start)
        yield HeadGroup(heads, BiasTable(pruned[heads, distances], groups, part, dtype), distances)


def by_heads(like: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Zeros [B, H, T, width], stored as [B, T, H, width] as projections store them."""
    batch, heads, length = like.shape[:3]
    return like.new_zeros(batch, length, heads, width, dtype=dtype).transpose(1, 2)
