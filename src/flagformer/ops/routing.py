"""Attention within clusters as blocks of equal size: who meets whom, whatever the clusters' sizes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.ops.key_ranges import KeyRanges
from flagformer.ops.lengths import clamp_to_length, num_blocks


class Tokens(NamedTuple):
    """Queries or keys as routing sees them.

    Attributes:
        clusters: [B, H, n] long.
        places: [n] long, ascending: the order of time.
    """

    clusters: Tensor
    places: Tensor

    def codes(self, span: int) -> Tensor:
        """[B, H, n]: numbers that sort by cluster, then by time."""
        return self.clusters * span + self.places


class Chunks(NamedTuple):
    """N chunks of g queries, each chunk against one stretch of s keys of the order by cluster and time.

    Attributes:
        queries: [B, N, H, g] long, numbers of queries; T where a place is empty.
        keys: [B, N, H, s] long, numbers of keys.
        allowed: [B, N, H, g, s] bool, which of them a query meets.
        slots: [B, H, T] long, where each query stands in N * g.
    """

    queries: Tensor
    keys: Tensor
    allowed: Tensor
    slots: Tensor


def stretches_of(queries: Tokens, keys: Tokens, span: int, window: int, own: int, alone: bool) -> KeyRanges:
    """The `window` most recent earlier keys of each query's cluster, as stretches of the sorted keys.

    Args:
        span: above every place.
        own, alone: of `Stretches`.
    """
    (code, by_query), (ordered, by_key) = queries.codes(span).sort(), keys.codes(span).sort()
    first = torch.searchsorted(ordered, code)
    begin = torch.searchsorted(ordered, code - code % span)
    return KeyRanges(by_query, by_key, torch.maximum(first - window, begin), first, own, alone)


def chunks_of(queries: Tokens, keys: Tokens, span: int, window: int, size: int, later: bool) -> Chunks:
    """Each query meets the `window` most recent earlier keys of its cluster; with `later` as many later ones.

    Keys in order are cut in tiles of the window's width: a query whose first later key is in tile b finds
    what it meets in tiles b - 1 and b (with `later` in b + 1 too). Queries of one tile are cut in chunks of
    `size`: at most T / size + S / window + 1, however the clusters lie, so that every shape is known before.

    Args:
        span: above every place.
    """
    (code, by_query), (ordered, by_key) = queries.codes(span).sort(), keys.codes(span).sort()
    first = torch.searchsorted(ordered, code)  # [B, H, T], in order: the first key that is not earlier
    begin = torch.searchsorted(ordered, code - code % span)  # the first of the cluster
    low, high, behind = torch.maximum(first - window, begin), first, first
    if later:
        behind = torch.searchsorted(ordered, code, right=True)
        end = torch.searchsorted(ordered, code - code % span + span)
        high = torch.minimum(behind + window, end)
    tile = first // window
    slots, count = _chunked(tile, num_blocks(keys.places.shape[0] // window + 1), size)

    total = queries.places.shape[0]
    shape = (*code.shape[:2], count * size)
    numbers = code.new_full(shape, total).scatter_(2, slots, by_query)

    def spread(x: Tensor) -> Tensor:
        """Of queries in order -> [B, N, H, g, 1]; zero where a place is empty."""
        placed = x.new_zeros(shape).scatter_(2, slots, x)
        return placed.unflatten(2, (count, size)).transpose(1, 2).contiguous()[..., None]

    of_chunk = spread(tile)[..., 0, :]  # the first place of a chunk is taken wherever one is
    rank = (of_chunk - 1) * window + torch.arange((3 if later else 2) * window, device=code.device)
    at = rank[..., None, :]  # [B, N, H, 1, s]
    allowed = (at >= spread(low)) & (at < spread(high))
    if later:
        allowed &= (at < spread(first)) | (at >= spread(behind))
    wanted = rank.transpose(1, 2).clamp(0, by_key.shape[2] - 1)  # [B, H, N, s]
    found = by_key.gather(2, wanted.flatten(2)).view_as(wanted).transpose(1, 2)
    where = torch.empty_like(slots).scatter_(2, by_query, slots)
    return Chunks(numbers.unflatten(2, (count, size)).transpose(1, 2), found, allowed, where)


class Members(NamedTuple):
    """Queries in N blocks of g, each of one cluster.

    Attributes:
        clusters: [B, N, H] long.
        numbers: [B, N, H, g] long, numbers of queries; T where a place is empty.
        slots: [B, H, T] long, where each query stands in N * g.
    """

    clusters: Tensor
    numbers: Tensor
    slots: Tensor


def members_of(clusters: Tensor, count: int, size: int) -> Members:
    """Queries [B, H, T] of `count` clusters, and of one more that is nobody's, in blocks of `size`."""
    order = clusters.sort(dim=2, stable=True)
    slots, blocks = _chunked(order.values, count + 1, size)
    shape = (*clusters.shape[:2], blocks * size)
    nobody = clusters.new_full(shape, clusters.shape[2])
    of_block = torch.zeros_like(nobody).scatter_(2, slots, order.values).unflatten(2, (blocks, size))
    numbers = nobody.scatter(2, slots, order.indices).unflatten(2, (blocks, size))
    where = torch.empty_like(slots).scatter_(2, order.indices, slots)
    return Members(of_block[..., 0].transpose(1, 2), numbers.transpose(1, 2), where)


def _chunked(tile: Tensor, tiles: int, size: int) -> tuple[Tensor, int]:
    """Ascending tile numbers [B, H, T] -> each one's slot in chunks of one tile, and how many chunks."""
    length = tile.shape[2]
    members = tile.new_zeros(*tile.shape[:2], tiles)
    members.scatter_add_(2, tile, torch.ones_like(tile))
    chunks = (members + size - 1) // size
    starts, bases = members.cumsum(dim=2) - members, chunks.cumsum(dim=2) - chunks
    within = torch.arange(length, device=tile.device) - starts.gather(2, tile)
    slots = bases.gather(2, tile) * size + within  # chunks of a tile follow each other
    return slots, clamp_to_length(num_blocks((length + tiles * (size - 1)) // size), length)


def latest_members(keys: Tokens, count: int, window: int) -> tuple[Tensor, Tensor]:
    """The places of each cluster's `window` last keys as a ring, and how many keys each cluster has had.

    Returns:
        [B, H, count, window] long, entry i mod window being the place of the cluster's i-th key; -1 where
        there is none; and [B, H, count] long.
    """
    batch, heads, length = keys.clusters.shape
    order = keys.clusters.sort(dim=2, stable=True)
    members = torch.zeros(batch, heads, count, dtype=torch.long, device=keys.places.device)
    members.scatter_add_(2, keys.clusters, torch.ones_like(keys.clusters))
    rank = torch.arange(length, device=keys.places.device) - (members.cumsum(2) - members).gather(
        2, order.values
    )
    recent = rank >= members.gather(2, order.values) - window
    # what is not recent goes to a ring that nobody reads
    ring = torch.where(recent, order.values, count) * window + rank % window
    rings = torch.full((batch, heads, (count + 1) * window), -1, device=keys.places.device)
    rings.scatter_(2, ring, keys.places[order.indices])
    return rings.unflatten(2, (count + 1, window))[:, :, :count], members
