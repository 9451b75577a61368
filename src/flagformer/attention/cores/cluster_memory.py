"""Learned prefix keys and values of each cluster (arXiv:1907.01470, section 3)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag
from flagformer.flow import Dims

Memories = Annotated[
    int,
    Flag("cluster_num_mem_kv", "routing: learned prefix keys and values M of each cluster", ge=0),
]
Front = tuple[Tensor, Tensor]


class ClusterMemory(nn.Module):
    """M keys and values for each cluster of each head; key norms are not applied."""

    def __init__(self, dims: Dims, clusters: int, count: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.empty(dims.heads, clusters, count, dims.dim_head))
        self.v = nn.Parameter(torch.empty(dims.heads, clusters, count, dims.dim_value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.k)
        nn.init.normal_(self.v)

    def forward(self, times: int = 1, clusters: Tensor | None = None) -> Front:
        """Return `of_blocks(clusters)`, or `of_all(times)` without clusters."""
        if clusters is not None:
            heads = torch.arange(clusters.shape[2], device=clusters.device)
            return self.k[heads, clusters], self.v[heads, clusters]
        k, v = (x.transpose(0, 1).repeat(times, 1, 1, 1)[None] for x in (self.k, self.v))
        return k, v

    def of_all(self, times: int) -> Front | None:
        """Keys [1, times * C, H, M, K] and values of all clusters, repeated for each of `times` segments."""
        return self(times)

    def of_blocks(self, clusters: Tensor) -> Front | None:
        """Clusters [B, N, H] -> keys [B, N, H, M, K] and values."""
        return self(clusters=clusters)


class NoClusterMemory(nn.Module):
    """Clusters without memory."""

    def of_all(self, times: int) -> Front | None:
        return None

    def of_blocks(self, clusters: Tensor) -> Front | None:
        return None


def cluster_memory(dims: Dims, clusters: int, count: int) -> ClusterMemory | NoClusterMemory:
    """Return a memory of `count` keys and values per cluster; an empty one for 0."""
    return ClusterMemory(dims, clusters, count) if count else NoClusterMemory()
