"""Attention within clusters as blocks of equal size: query and key indices for clusters of any size."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.ops.lengths import clamp_to_length, num_blocks


class Tokens(NamedTuple):
    """Clusters and positions of queries or keys.

    Attributes:
        clusters: [B, H, n] long.
        positions: [n] long, ascending.
    """

    clusters: Tensor
    positions: Tensor

    def codes(self, span: int) -> Tensor:
        """[B, H, n]: integers that sort by cluster, then by position."""
        return self.clusters * span + self.positions


class Chunks(NamedTuple):
    """N chunks of g queries, each with one range of s keys; keys are sorted by cluster and position.

    Attributes:
        queries: [B, N, H, g] long, query indices; T for padding.
        keys: [B, N, H, s] long, key indices.
        allowed: [B, N, H, g, s] bool, True where a query attends to a key.
        slots: [B, H, T] long, the position of each query in N * g.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor
    slots: Tensor


def chunks_of(queries: Tokens, keys: Tokens, span: int, window: int, size: int, later: bool) -> Chunks:
    """Chunks of queries that attend to the `window` most recent earlier keys of their cluster; with `later`
    also to the next `window` later keys.

    Sorted keys are split in tiles of `window` keys: if a query's first later key is in tile b, its keys are
    in tiles b - 1 and b (with `later` also in b + 1). Queries of one tile are split in chunks of `size`: at
    most T / size + S / window + 1 for any clusters, so that shapes do not depend on the data.

    Args:
        span: larger than every position.
    """
    (code, by_query), (ordered, by_key) = queries.codes(span).sort(), keys.codes(span).sort()
    first = torch.searchsorted(ordered, code)  # [B, H, T], sorted: the first key that is not earlier
    begin = torch.searchsorted(ordered, code - code % span)  # the first of the cluster
    range_start, range_end, first_later = torch.maximum(first - window, begin), first, first
    if later:
        first_later = torch.searchsorted(ordered, code, right=True)
        cluster_end = torch.searchsorted(ordered, code - code % span + span)
        range_end = torch.minimum(first_later + window, cluster_end)
    tile = first // window
    slots, count = _chunked(tile, num_blocks(keys.positions.shape[0] // window + 1), size)

    total = queries.positions.shape[0]
    shape = (*code.shape[:2], count * size)
    numbers = code.new_full(shape, total).scatter_(2, slots, by_query)

    def by_chunk(x: Tensor) -> Tensor:
        """Values of the sorted queries -> [B, N, H, g, 1]; zeros for padding."""
        values = x.new_zeros(shape).scatter_(2, slots, x)
        return values.unflatten(2, (count, size)).transpose(1, 2).contiguous()[..., None]

    of_chunk = by_chunk(tile)[..., 0, :]  # padding is at the end of a chunk
    rank = (of_chunk - 1) * window + torch.arange((3 if later else 2) * window, device=code.device)
    at = rank[..., None, :]  # [B, N, H, 1, s]
    allowed = (at >= by_chunk(range_start)) & (at < by_chunk(range_end))
    if later:
        allowed &= (at < by_chunk(first)) | (at >= by_chunk(first_later))
    wanted = rank.transpose(1, 2).clamp(0, by_key.shape[2] - 1)  # [B, H, N, s]
    found = by_key.gather(2, wanted.flatten(2)).view_as(wanted).transpose(1, 2)
    where = torch.empty_like(slots).scatter_(2, by_query, slots)
    return Chunks(numbers.unflatten(2, (count, size)).transpose(1, 2), found, allowed, where)


class Members(NamedTuple):
    """Queries in N blocks of g, each of one cluster.

    Attributes:
        clusters: [B, N, H] long.
        numbers: [B, N, H, g] long, query indices; T for padding.
        slots: [B, H, T] long, the position of each query in N * g.
    """

    clusters: Tensor
    numbers: Tensor
    slots: Tensor


def members_of(clusters: Tensor, count: int, size: int) -> Members:
    """Queries [B, H, T] in blocks of `size`, each of one cluster; cluster `count` is padding."""
    order = clusters.sort(dim=2, stable=True)
    slots, blocks = _chunked(order.values, count + 1, size)
    shape = (*clusters.shape[:2], blocks * size)
    padding = clusters.new_full(shape, clusters.shape[2])
    of_block = torch.zeros_like(padding).scatter_(2, slots, order.values).unflatten(2, (blocks, size))
    numbers = padding.scatter(2, slots, order.indices).unflatten(2, (blocks, size))
    where = torch.empty_like(slots).scatter_(2, order.indices, slots)
    return Members(of_block[..., 0].transpose(1, 2), numbers.transpose(1, 2), where)


def _chunked(tile: Tensor, tiles: int, size: int) -> tuple[Tensor, int]:
    """Ascending tile indices [B, H, T] -> the position of each query in chunks of one tile, and the count."""
    length = tile.shape[2]
    members = tile.new_zeros(*tile.shape[:2], tiles)
    members.scatter_add_(2, tile, torch.ones_like(tile))
    chunks = (members + size - 1) // size
    starts, bases = members.cumsum(dim=2) - members, chunks.cumsum(dim=2) - chunks
    within = torch.arange(length, device=tile.device) - starts.gather(2, tile)
    slots = bases.gather(2, tile) * size + within  # chunks of a tile follow each other
    return slots, clamp_to_length(num_blocks((length + tiles * (size - 1)) // size), length)


def latest_members(keys: Tokens, count: int, window: int) -> tuple[Tensor, Tensor]:
    """Ring buffers of the positions of each cluster's last `window` keys, and the number of its keys.

    Returns:
        [B, H, count, window] long, entry i mod window is the position of the cluster's i-th key, -1 where
        there is none; and [B, H, count] long.
    """
    batch, heads, length = keys.clusters.shape
    order = keys.clusters.sort(dim=2, stable=True)
    members = torch.zeros(batch, heads, count, dtype=torch.long, device=keys.positions.device)
    members.scatter_add_(2, keys.clusters, torch.ones_like(keys.clusters))
    rank = torch.arange(length, device=keys.positions.device) - (members.cumsum(2) - members).gather(
        2, order.values
    )
    recent = rank >= members.gather(2, order.values) - window
    # older keys go to an extra ring that is dropped
    ring = torch.where(recent, order.values, count) * window + rank % window
    rings = torch.full((batch, heads, (count + 1) * window), -1, device=keys.positions.device)
    rings.scatter_(2, ring, keys.positions[order.indices])
    return rings.unflatten(2, (count + 1, window))[:, :, :count], members
