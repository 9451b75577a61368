"""The centroids of routing attention, learned by online k-means without gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flagformer.flags import Flag
from flagformer.ops.clusters import Centroids, ClusterStats, commitment_loss, cosines, kmeans_step, nearest
from flagformer.ops.l2_normalize import l2_normalize, unit_and_length
from flagformer.ops.reminder import mark_updated
from flagformer.ops.tiling import sequence_tiles, tile_tokens
from flagformer.ops.traced import cacheable

LOSS = "kmeans.commitment"  # its name on the collector
REMINDER = (
    "the optimizer has made two steps, but the centroids of routing attention have not moved: call "
    "`model.update_kmeans()` after each `optimizer.step()`, or once "
    "`optimizer.register_step_post_hook(lambda *_: model.update_kmeans())`"
)
Decay = Annotated[float, Flag("kmeans_ema_decay", "decay of the moving averages of k-means", ge=0, lt=1)]
Commitment = Annotated[
    float, Flag("commitment_factor", "weight of the commitment loss of tokens to centroids", ge=0)
]


class KMeans(nn.Module):
    """C centroids of unit length for each head, always in fp32.

    Training forwards accumulate cluster statistics. Only `ema_update`, called once per optimizer step,
    updates the centroids, with the statistics of all ranks since the last update. Traced and exported
    forwards and those under transforms of `torch.func` accumulate nothing: their tensors end with the trace.

    Args:
        decay: decay of the moving averages of sums and counts.
        commitment: weight of the commitment loss; 0: no loss.
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
        """Set random centroids and clear all statistics."""
        self.means.copy_(l2_normalize(nn.init.normal_(self.means)))
        self.sums.zero_()
        self.counts.zero_()
        # not a buffer, so that it is not saved and distributed wrappers do not broadcast it
        self.pending_stats: ClusterStats | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        for name in ("means", "sums", "counts"):
            before: Tensor = getattr(self, name)
            after = fn(before)
            setattr(self, name, after if after.dtype == before.dtype else before.to(after.device))
        return self

    def cosines(self, vectors: Tensor) -> Tensor:
        """Return the cosines [B, H, T, C] of unit vectors [B, H, T, K] and centroids, without gradient."""
        return cosines(vectors.detach(), self.means.to(vectors.dtype))

    def clusters(self, vectors: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unit vectors [B, H, T, K] -> cluster indices [B, H, T], `count` for padding, and cosines.

        Args:
            padding: [1 or B, T] bool, True for valid tokens; None: all are valid.
        """
        clusters, cosines = nearest(vectors, self.means.to(vectors.dtype))
        if padding is not None:
            clusters = clusters.masked_fill(~padding[:, None], self.count)
        return clusters, cosines

    def read(
        self, x: Tensor, padding: Tensor | None, counts: bool, draws: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Return the cluster indices [B, H, T] of x [B, H, T, K], and the commitment loss or None.

        Args:
            counts: whether to add the tokens to the statistics.
            draws: whether to compute the loss.
        """
        found = [
            self._read(x[:, :, tile].detach(), None if padding is None else padding[:, tile], counts)
            for tile in sequence_tiles(x)
        ]
        clusters, cosines, lengths = (
            parts[0] if len(parts) == 1 else torch.cat(parts, dim=2) for parts in zip(*found)
        )
        loss = self.loss(x, lengths, clusters, cosines) if draws and self.commitment else None
        return clusters, loss

    def _read(self, x: Tensor, padding: Tensor | None, counts: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return clusters, cosines and norms [B, H, T] of one tile of tokens."""
        units, lengths = unit_and_length(x)
        clusters, cosines = self.clusters(units, padding)
        if counts and cacheable(units):
            self.observe(units, clusters, cosines)
        return clusters, cosines, lengths

    def observe(self, vectors: Tensor, clusters: Tensor, cosines: Tensor) -> None:
        """Add the tokens of a forward to the statistics."""
        stats = ClusterStats.of(vectors.float(), clusters, cosines.float(), self.count)
        self.pending_stats = stats if self.pending_stats is None else self.pending_stats.merge(stats)

    def loss(self, x: Tensor, lengths: Tensor, clusters: Tensor, cosines: Tensor) -> Tensor:
        """Return the mean squared distance of x / |x| [B, H, T, K] to its centroids, times `commitment`.

        The mean is over valid tokens and the K dimensions, as in the published code.
        """
        means = self.means.to(x.dtype)
        return self.commitment * commitment_loss(x, lengths, clusters, cosines, means)

    @torch.no_grad()
    def ema_update(self) -> None:
        """Update the centroids with the statistics of all ranks since the last update, and clear these."""
        pending, self.pending_stats = self.pending_stats, None
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if pending is None:
            if not distributed:
                return
            pending = ClusterStats.zeros(self.means)
        stats = ClusterStats(*(part.to(self.means.device) for part in pending))
        if distributed:
            stats = _of_all_ranks(stats)
        if self.means.dtype != torch.float32:  # some loaders cast all weights and buffers to one dtype
            self.means, self.sums, self.counts = (x.float() for x in (self.means, self.sums, self.counts))
        updated = kmeans_step(Centroids(self.means, self.sums, self.counts), stats, self.decay)
        for buffer, value in zip((self.means, self.sums, self.counts), updated):
            buffer.copy_(value)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Restore the statistics of centroids and balance biases at exit, for tokens that are read twice."""
    saved: dict[Any, Any] = {
        module: module.pending_stats for module in model.modules() if hasattr(module, "pending_stats")
    }
    try:
        yield
    finally:
        for module, pending in saved.items():
            module.pending_stats = pending


def _of_all_ranks(stats: ClusterStats) -> ClusterStats:
    parts = [[torch.empty_like(part) for _ in range(dist.get_world_size())] for part in stats]
    for gathered, part in zip(parts, stats):
        dist.all_gather(gathered, part.contiguous())
    first, *others = (ClusterStats(*ranks) for ranks in zip(*parts))
    for other in others:
        first = first.merge(other)
    return first


def update_kmeans(model: nn.Module) -> None:
    """Update all centroids of a model; call it after each optimizer step, on all ranks.

    Does nothing for a model without centroids.

    `optimizer.register_step_post_hook(lambda *_: update_kmeans(model))` calls it at each step.
    """
    mark_updated(model, REMINDER)
    for module in model.modules():
        if isinstance(module, KMeans):
            module.ema_update()
