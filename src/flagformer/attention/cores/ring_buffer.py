"""The cache of routing attention: cache positions of the last keys of each cluster."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow import DecodeState, LayerCache, Positions
from flagformer.ops.routing import Tokens, latest_members


class ClusterRingBuffer(LayerCache):
    """The cluster of every token, and the last w cache positions of each cluster; padding is a cluster too.

    After a block of tokens or a `truncate` the buffers are rebuilt from the clusters; a single token updates
    them in O(1).
    """

    counters = ("length",)

    def __init__(self, state: DecodeState, heads: int, count: int, window: int, device: torch.device) -> None:
        self.count, self.window = count + 1, window
        self.positions = {"clusters": Positions(2, empty=count)}  # as padding
        self.clusters = torch.empty(state.batch, heads, state.capacity, dtype=torch.long, device=device)
        self.latest = torch.full((state.batch, heads, self.count, window), -1, device=device)
        self.counts = torch.zeros(state.batch, heads, self.count, dtype=torch.long, device=device)
        self.length = 0  # number of tokens in the buffers

    def lookup(self, clusters: Tensor, length: int) -> Tensor:
        """Cache positions [B, H, w] of the last keys of `clusters` [B, H, 1] in the first `length` tokens."""
        if self.length != length:
            tokens = Tokens(self.clusters[:, :, :length], torch.arange(length, device=clusters.device))
            for buffer, new in zip(
                (self.latest, self.counts), latest_members(tokens, self.count, self.window)
            ):
                buffer.copy_(new)
            self.length = length
        return self.latest.gather(2, clusters[..., None].expand(-1, -1, -1, self.window))[:, :, 0]

    def extend(self, clusters: Tensor, start: int, write_mask: Tensor | None = None) -> Tensor:
        """Write the clusters [B, H, T] of new keys, those that are True in `write_mask` [B, T]; None: all.
        Return the clusters of all keys so far."""
        end = start + clusters.shape[2]
        stored = self.clusters[:, :, start:end]
        stored.copy_(clusters if write_mask is None else torch.where(write_mask[:, None], clusters, stored))
        if clusters.shape[2] > 1 or self.length != start or write_mask is not None:
            self.length = -1  # outdated, also after a `truncate` to this length
        else:
            at = self.counts.gather(2, clusters) % self.window  # [B, H, 1]
            self.latest.view(*clusters.shape[:2], -1).scatter_(2, clusters * self.window + at, start)
            self.counts.scatter_add_(2, clusters, torch.ones_like(clusters))
            self.length = end
        return self.clusters[:, :, :end]

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"clusters": self.clusters, "latest": self.latest, "counts": self.counts}

    def replace(self, tensors: dict[str, Tensor]) -> None:
        self.clusters, self.latest, self.counts = tensors["clusters"], tensors["latest"], tensors["counts"]

    def gather_positions(self, source: Tensor) -> None:
        super().gather_positions(source)
        self.length = -1
