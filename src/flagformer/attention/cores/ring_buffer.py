"""What routing attention remembers while decoding: the last keys of each cluster, by their place."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow import DecodeState
from flagformer.ops.routing import Tokens, latest_members


class ClusterRingBuffer:
    """The cluster of every token, and the last w cache positions of each; padding is one more cluster.

    After a block of tokens or a `truncate` the buffers are rebuilt from the clusters; a single token updates
    them in O(1).
    """

    def __init__(self, state: DecodeState, heads: int, count: int, window: int, device: torch.device) -> None:
        self.count, self.window = count + 1, window
        self.clusters = torch.empty(state.batch, heads, state.capacity, dtype=torch.long, device=device)
        self.places = torch.full((state.batch, heads, self.count, window), -1, device=device)
        self.counts = torch.zeros(state.batch, heads, self.count, dtype=torch.long, device=device)
        self.length = 0  # how many tokens the buffers include

    def lookup(self, clusters: Tensor, length: int) -> Tensor:
        """Cache positions [B, H, w] of the last keys of `clusters` [B, H, 1] in the first `length` tokens."""
        if self.length != length:
            tokens = Tokens(self.clusters[:, :, :length], torch.arange(length, device=clusters.device))
            for held, found in zip(
                (self.places, self.counts), latest_members(tokens, self.count, self.window)
            ):
                held.copy_(found)
            self.length = length
        return self.places.gather(2, clusters[..., None].expand(-1, -1, -1, self.window))[:, :, 0]

    def extend(self, clusters: Tensor, start: int, fresh: Tensor | None = None) -> Tensor:
        """Notes the clusters [B, H, T] of new keys, only those that are True in `fresh` [B, T]; returns those
        of all keys so far."""
        end = start + clusters.shape[2]
        held = self.clusters[:, :, start:end]
        held.copy_(clusters if fresh is None else torch.where(fresh[:, None], clusters, held))
        if clusters.shape[2] > 1 or self.length != start or fresh is not None:
            self.length = -1  # outdated, also if tokens are dropped and read again
        else:
            at = self.counts.gather(2, clusters) % self.window  # [B, H, 1]
            self.places.view(*clusters.shape[:2], -1).scatter_(2, clusters * self.window + at, start)
            self.counts.scatter_add_(2, clusters, torch.ones_like(clusters))
            self.length = end
        return self.clusters[:, :, :end]

    def reorder(self, index: Tensor) -> None:
        for part in (self.clusters, self.places, self.counts):
            part.copy_(part.index_select(0, index))

    def gather_positions(self, source: Tensor) -> None:
        places = source[:, None].expand(-1, self.clusters.shape[1], -1)
        moved = self.clusters.gather(2, places.clamp(min=0))
        self.clusters[:, :, : places.shape[2]] = moved.masked_fill(places < 0, self.count - 1)  # as padding
        self.length = -1

    def size_bytes(self) -> int:
        return self.clusters.nbytes + self.places.nbytes + self.counts.nbytes
