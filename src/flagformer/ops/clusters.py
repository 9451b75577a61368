"""Spherical k-means, one set of centroids per head: assignment, commitment loss, and EMA updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.ops.full_precision import no_autocast
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.ops.traced import transformed

FARTHEST = 2.0  # above any cosine: the cluster has no tokens


def cosines(vectors: Tensor, means: Tensor) -> Tensor:
    """Vectors [B, H, T, K] and means [H, C, K] of unit length -> [B, H, T, C], without autocast."""
    with no_autocast(vectors.device):
        return vectors @ means.mT


@torch.no_grad()
def nearest(vectors: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """The centroid of largest cosine; of bitwise equal centroids the first.

    A matrix product may round equal columns differently, so equal centroids are found by comparing their
    values, which gives the same result on every device.

    Args:
        vectors: [B, H, T, K] of unit length, fp32.
        means: [H, C, K] of unit length, fp32.

    Returns:
        Cluster indices [B, H, T] long, and the cosines [B, H, T].
    """
    best, found = cosines(vectors, means).max(dim=-1)
    firsts = first_equal(means)[None].expand(found.shape[0], -1, -1)  # [B, H, C]
    return firsts.gather(2, found), best


PRIMES = 7919, 1048573  # checksum weights: distinct below the second, and small enough not to overflow


def first_equal(means: Tensor) -> Tensor:
    """[H, C, K] -> [H, C] long, the first index with the same fp32 values, usually its own."""
    bits = (means.float() + 0.0).view(torch.int32).long()  # + 0.0 maps -0.0 to 0.0
    weights = torch.arange(1, means.shape[2] + 1, device=means.device) * PRIMES[0] % PRIMES[1]
    checksums = (bits * weights).sum(dim=2)  # integers: the same on every device
    return (checksums[:, :, None] == checksums[:, None]).long().argmax(dim=2)


class CommitmentLoss(torch.autograd.Function):
    """`_commitment_formula` without a tensor of [B, H, T, K] in the forward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lengths: Tensor, clusters: Tensor, cosines: Tensor, means: Tensor
    ) -> Tensor:
        valid = clusters < means.shape[1]
        count = valid.sum().clamp(min=1) * x.shape[3]
        ctx.save_for_backward(x, lengths, clusters, cosines, means, count)
        # |a - b|^2 of two unit vectors
        return (2 - 2 * cosines).clamp(min=0).masked_fill(~valid, 0.0).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lengths, clusters, cosines, means, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # `create_graph=True`: the formula can be differentiated again
            loss = _commitment_formula(x, clusters, means)
            (dx,) = torch.autograd.grad(loss, x, grad, create_graph=True)
            return dx, None, None, None, None
        targets = F.pad(means, (0, 0, 0, 1))  # [H, C + 1, K]: zeros for padded tokens
        # token by token, the order of the vectors in memory
        index = clusters.transpose(1, 2) + torch.arange(len(targets), device=x.device) * targets.shape[1]
        nearest_means = targets.flatten(0, 1).index_select(0, index.flatten())
        nearest_means = nearest_means.view(*index.shape, -1).transpose(1, 2)
        factor = -2 * grad / count / lengths
        factor = factor.masked_fill(clusters >= means.shape[1], 0.0)[..., None]
        dx = nearest_means.mul_(factor).addcmul_(x, factor * (cosines / lengths)[..., None], value=-1)
        return dx, None, None, None, None


def commitment_loss(x: Tensor, lengths: Tensor, clusters: Tensor, cosines: Tensor, means: Tensor) -> Tensor:
    """The mean squared difference of x / |x| and its centroids, over the dimensions of valid tokens.

    Args:
        x, lengths: the vectors [B, H, T, K] and their norms [B, H, T].
        clusters, cosines: [B, H, T], the index of each vector's centroid, C for padding, and their cosine.
        means: [H, C, K] of unit length.
    """
    if transformed():
        return _commitment_formula(x, clusters, means)
    loss: Tensor = CommitmentLoss.apply(x, lengths, clusters, cosines, means)
    return loss


def _commitment_formula(x: Tensor, clusters: Tensor, means: Tensor) -> Tensor:
    """The loss in torch operators, for transforms of `torch.func` and second derivatives."""
    valid = clusters < means.shape[1]
    all_cosines = cosines(l2_normalize(x), means)
    cosine = all_cosines.gather(3, clusters.clamp(max=means.shape[1] - 1)[..., None])[..., 0]
    return (2 - 2 * cosine).masked_fill(~valid, 0.0).sum() / (valid.sum().clamp(min=1) * x.shape[3])


class ClusterStats(NamedTuple):
    """Statistics of the tokens of each cluster.

    Attributes:
        counts: [H, C], tokens of each cluster.
        sums: [H, C, K], the sum of their vectors.
        cosines: [H, C], the smallest cosine of a centroid and one of its tokens; FARTHEST without tokens.
        farthest: [H, C, K], that token's vector.
    """

    counts: Tensor
    sums: Tensor
    cosines: Tensor
    farthest: Tensor

    @staticmethod
    def zeros(means: Tensor) -> ClusterStats:
        zeros = torch.zeros_like(means)
        none = zeros[..., 0].clone()
        return ClusterStats(none, zeros, torch.full_like(none, FARTHEST), zeros.clone())

    def merge(self, other: ClusterStats) -> ClusterStats:
        """The statistics of both sets of tokens; the order does not matter."""
        farther = (other.cosines < self.cosines)[..., None]
        return ClusterStats(
            self.counts + other.counts,
            self.sums + other.sums,
            torch.minimum(self.cosines, other.cosines),
            torch.where(farther, other.farthest, self.farthest),
        )

    @staticmethod
    @torch.no_grad()
    def of(vectors: Tensor, clusters: Tensor, cosines: Tensor, count: int) -> ClusterStats:
        """The statistics of vectors [B, H, T, K]; the cluster index `count` marks padding."""
        batch, heads, length, width = vectors.shape
        rows = vectors.transpose(0, 1).flatten(1, 2)  # [H, B * T, K]
        cluster, cosine = (x.transpose(0, 1).flatten(1) for x in (clusters, cosines))  # [H, B * T]
        counts = cosine.new_zeros(heads, count + 1).scatter_add_(1, cluster, torch.ones_like(cosine))
        # token by token, the order of the vectors in memory
        index = clusters.transpose(1, 2) + torch.arange(heads, device=rows.device) * (count + 1)
        sums = rows.new_zeros(heads * (count + 1), width)
        sums.index_add_(0, index.flatten(), vectors.transpose(1, 2).reshape(-1, width))
        sums = sums.unflatten(0, (heads, -1))
        lowest = torch.full_like(counts, FARTHEST).scatter_reduce_(1, cluster, cosine, "amin")
        tokens = torch.arange(batch * length, device=rows.device).expand_as(cluster)
        tokens = torch.where(cosine == lowest.gather(1, cluster), tokens, -1)
        last = torch.full_like(counts, -1, dtype=torch.long).scatter_reduce_(1, cluster, tokens, "amax")
        farthest = rows.gather(1, last.clamp(min=0)[..., None].expand(-1, -1, width))
        return ClusterStats(*(part[:, :count] for part in (counts, sums, lowest, farthest)))


class Centroids(NamedTuple):
    """Moving averages of each cluster's vector sum and token count, and the centroids.

    Attributes:
        means: [H, C, K], the directions of `sums`, of unit length.
        sums: [H, C, K].
        counts: [H, C].
    """

    means: Tensor
    sums: Tensor
    counts: Tensor


# Fractions of the mean token count of a cluster: below DEAD a cluster is dead; a reinitialised cluster starts
# with a count of REINIT.
DEAD, REINIT = 0.01, 0.1


@torch.no_grad()
def kmeans_step(now: Centroids, stats: ClusterStats, decay: float) -> Centroids:
    """One EMA update of the centroids; heads without tokens keep theirs.

    A dead cluster is reinitialised at the token that is farthest from its own centroid. The donors of several
    dead clusters are the clusters in the order of that distance, one each.
    """
    has_tokens = (stats.counts.sum(dim=1) > 0)[:, None]  # [H, 1]
    counts = torch.where(has_tokens, torch.lerp(stats.counts, now.counts, decay), now.counts)
    sums = torch.where(has_tokens[..., None], torch.lerp(stats.sums, now.sums, decay), now.sums)
    means = torch.where((counts > 0)[..., None], l2_normalize(sums), now.means)

    mean_count = counts.mean(dim=1, keepdim=True)
    dead = (counts < DEAD * mean_count) & has_tokens
    ranked = stats.cosines.argsort(dim=1, stable=True)  # the farthest first, clusters without tokens last
    dead_rank = (dead.cumsum(dim=1) - 1).clamp(min=0)
    donor = ranked.gather(1, dead_rank)
    # a token at its own centroid would only duplicate it
    is_far = stats.cosines.gather(1, donor) < 1 - 1e-4
    reinit = (dead & is_far)[..., None]
    new_means = stats.farthest.gather(1, donor[..., None].expand_as(means))
    weight = (REINIT * mean_count)[..., None]
    return Centroids(
        torch.where(reinit, new_means, means),
        torch.where(reinit, new_means * weight, sums),
        torch.where(reinit[..., 0], weight[..., 0], counts),
    )
