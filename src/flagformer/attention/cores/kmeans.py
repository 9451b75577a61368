"""The centroids of routing attention: learned without gradient, by running k-means."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flagformer.attention.cores.reminder import moved
from flagformer.flags import Flag
from flagformer.ops.clusters import Centroids, ClusterStats, commitment_loss, cosines, kmeans_step, nearest
from flagformer.ops.l2_normalize import l2_normalize, unit_and_length
from flagformer.ops.tiling import sequence_tiles, tile_tokens
from flagformer.ops.traced import cacheable

LOSS = "kmeans.commitment"  # its name on the collector
Decay = Annotated[
    float, Flag("kmeans_ema_decay", "share of running sums that a step of k-means keeps", ge=0, lt=1)
]
Commitment = Annotated[
    float, Flag("commitment_factor", "weight of the loss that draws tokens to centroids", ge=0)
]


class KMeans(nn.Module):
    """C unit vectors for each head, in fp32 whatever the model's dtype.

    Forwards in training gather what their tokens say; `commit` moves the centroids, once for each step of the
    optimizer, by what was gathered since on all ranks. Nothing else moves them. Forwards under transforms of
    `torch.func`, exported ones and those of fake tensors gather nothing: their tensors end with the trace.

    Args:
        decay: share of the running sums and counts that a commit keeps.
        commitment: weight of the loss that draws vectors to their centroid; 0 for none.
    """

    means: Tensor
    sums: Tensor
    counts: Tensor

    def __init__(self, heads: int, count: int, width: int, decay: float, commitment: float) -> None:
        super().__init__()
        self.count, self.decay, self.commitment = count, decay, commitment
        self.path_changes_at = (tile_tokens(heads, width),)
        self.register_buffer("means", torch.empty(heads, count, width, dtype=torch.float32))
        self.register_buffer("sums", torch.empty(heads, count, width, dtype=torch.float32))
        self.register_buffer("counts", torch.empty(heads, count, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Random directions, of which nothing has been seen."""
        self.means.copy_(l2_normalize(nn.init.normal_(self.means)))
        self.sums.zero_()
        self.counts.zero_()
        # no buffer: not saved, and not what a distributed wrapper overwrites between two forwards
        self.pending_stats: ClusterStats | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name in ("means", "sums", "counts"):
            before: Tensor = getattr(self, name)
            after = fn(before)
            setattr(self, name, after if after.dtype == before.dtype else before.to(after.device))
        return self

    def cosines(self, vectors: Tensor) -> Tensor:
        """Between vectors [B, H, T, K] of unit length and every centroid, [B, H, T, C]; without gradient."""
        return cosines(vectors.detach(), self.means.to(vectors.dtype))

    def clusters(self, vectors: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Vectors [B, H, T, K] of unit length -> clusters [B, H, T] and cosines; `count` for padded tokens.

        Args:
            padding: [1 or B, T] bool, True for real tokens; None when all are.
        """
        clusters, cosines = nearest(vectors, self.means.to(vectors.dtype))
        if padding is not None:
            clusters = clusters.masked_fill(~padding[:, None], self.count)
        return clusters, cosines

    def read(
        self, x: Tensor, padding: Tensor | None, counts: bool, draws: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The clusters [B, H, T] of x [B, H, T, K], and the loss that draws them there.

        Args:
            counts: whether these are tokens that have not been gathered.
            draws: whether there is a loss.
        """
        found = [
            self._read(x[:, :, piece].detach(), None if padding is None else padding[:, piece], counts)
            for piece in sequence_tiles(x)
        ]
        clusters, cosines, lengths = (
            parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) for parts in zip(*found)
        )
        loss = self.loss(x, lengths, clusters, cosines) if draws and self.commitment else None
        return clusters, loss

    def _read(self, x: Tensor, padding: Tensor | None, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Clusters, cosines and lengths [B, H, T] of some tokens."""
        units, lengths = unit_and_length(x)
        clusters, cosines = self.clusters(units, padding)
        if counts and cacheable(units):
            self.observe(units, clusters, cosines)
        return clusters, cosines, lengths

    def observe(self, vectors: Tensor, clusters: Tensor, cosines: Tensor) -> None:
        """Gathers what the tokens of a forward say."""
        seen = ClusterStats.of(vectors.float(), clusters, cosines.float(), self.count)
        self.pending_stats = seen if self.pending_stats is None else self.pending_stats.merge(seen)

    def loss(self, x: Tensor, lengths: Tensor, clusters: Tensor, cosines: Tensor) -> Tensor:
        """The mean square of what parts x [B, H, T, K] of unit length from its centroids, times `commitment`.

        The mean is over real tokens and the K numbers of a vector, as in the published code.
        """
        means = self.means.to(x.dtype)
        return self.commitment * commitment_loss(x, lengths, clusters, cosines, means)

    @torch.no_grad()
    def ema_update(self) -> None:
        """Moves the centroids by the statistics of all ranks since the last update, and resets these."""
        pending, self.pending_stats = self.pending_stats, None
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if pending is None:
            if not together:
                return
            pending = ClusterStats.zeros(self.means)
        seen = ClusterStats(*(part.to(self.means.device) for part in pending))
        if together:
            seen = _of_all_ranks(seen)
        if self.means.dtype != torch.float32:  # loaded by what gives all weights one dtype
            self.means, self.sums, self.counts = (x.float() for x in (self.means, self.sums, self.counts))
        moved = kmeans_step(Centroids(self.means, self.sums, self.counts), seen, self.decay)
        for buffer, value in zip((self.means, self.sums, self.counts), moved):
            buffer.copy_(value)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Training forwards that gather no statistics, of centroids and of balance biases, as the same tokens are
    read again afterwards."""
    held: dict[Any, Any] = {
        module: module.pending_stats for module in model.modules() if hasattr(module, "pending_stats")
    }
    try:
        yield
    finally:
        for module, pending in held.items():
            module.pending_stats = pending


def _of_all_ranks(seen: ClusterStats) -> ClusterStats:
    parts = [[torch.empty_like(part) for _ in range(dist.get_world_size())] for part in seen]
    for gathered, part in zip(parts, seen):
        dist.all_gather(gathered, part.contiguous())
    first, *others = (ClusterStats(*ranks) for ranks in zip(*parts))
    for other in others:
        first = first.merge(other)
    return first


def update_kmeans(model: nn.Module) -> None:
    """Moves all centroids of a model by what its training forwards have gathered: once for each step of the
    optimizer, after it, on all ranks. Does nothing to a model without centroids.

    `optimizer.register_step_post_hook(lambda *_: update_kmeans(model))` calls it at each step.
    """
    moved(model)
    for module in model.modules():
        if isinstance(module, KMeans):
            module.ema_update()
