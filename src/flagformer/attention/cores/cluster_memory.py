"""Learned prefix keys and values of each cluster (arXiv:1907.01470, section 3)."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor, nn

from flagformer.flags import Flag
from flagformer.flow import Dims

Memories = Annotated[
    int,
    Flag("cluster_num_mem_kv", "routing: learned keys and values M of each cluster, in front", ge=0),
]
Front = tuple[Tensor, Tensor]


class ClusterMemory(nn.Module):
    """M keys and values for each cluster of each head, of any length whatever norms keys."""

    def __init__(self, dims: Dims, clusters: int, count: int) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.empty(dims.heads, clusters, count, dims.dim_head))
        self.v = nn.Parameter(torch.empty(dims.heads, clusters, count, dims.dim_value))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.k)
        nn.init.normal_(self.v)

    def forward(self, times: int = 1, clusters: Tensor | None = None) -> Front:
        """`of_all(times)`, or `of_blocks(clusters)` where these are given."""
        if clusters is not None:
            heads = torch.arange(clusters.shape[2], device=clusters.device)
            return self.k[heads, clusters], self.v[heads, clusters]
        k, v = (x.transpose(0, 1).repeat(times, 1, 1, 1)[None] for x in (self.k, self.v))
        return k, v

    def of_all(self, times: int) -> Front | None:
        """[1, times * C, H, M, K] and V: every cluster's, again for each group that it picks from."""
        return self(times)

    def of_blocks(self, clusters: Tensor) -> Front | None:
        """[B, N, H] -> [B, N, H, M, K] and V."""
        return self(clusters=clusters)


class NoClusterMemory(nn.Module):
    """Clusters hold tokens alone."""

    def of_all(self, times: int) -> Front | None:
        return None

    def of_blocks(self, clusters: Tensor) -> Front | None:
        return None


def cluster_memory(dims: Dims, clusters: int, count: int) -> ClusterMemory | NoClusterMemory:
    """Memory of so many keys and values a cluster, or none."""
    return ClusterMemory(dims, clusters, count) if count else NoClusterMemory()
