"""Spherical k-means, one set of centroids per head: which is nearest, and what a batch says of them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.ops.full_precision import no_autocast
from flagformer.ops.l2_normalize import l2_normalize
from flagformer.ops.traced import transformed

FARTHEST = 2.0  # beyond any cosine: nothing was seen


def cosines(vectors: Tensor, means: Tensor) -> Tensor:
    """Vectors [B, H, T, K] and means [H, C, K] of unit length -> [B, H, T, C], whatever autocast says."""
    with no_autocast(vectors.device):
        return vectors @ means.mT


@torch.no_grad()
def nearest(vectors: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """The centroid of largest cosine; of centroids that are equal, number by number, the first.

    A matrix product may round columns of equal numbers differently, so equal centroids are found by their
    numbers, on every device alike.

    Args:
        vectors: [B, H, T, K] of unit length, fp32.
        means: [H, C, K] of unit length, fp32.

    Returns:
        [B, H, T] long, and the cosines [B, H, T].
    """
    best, found = cosines(vectors, means).max(dim=-1)
    firsts = first_equal(means)[None].expand(found.shape[0], -1, -1)  # [B, H, C]
    return firsts.gather(2, found), best


PRIMES = 7919, 1048573  # weights of a checksum, distinct below the second and small enough not to overflow


def first_equal(means: Tensor) -> Tensor:
    """[H, C, K] -> [H, C] long: the first centroid with the same fp32 numbers, mostly itself."""
    bits = (means.float() + 0.0).view(torch.int32).long()  # + 0.0: the two zeros are one
    weights = torch.arange(1, means.shape[2] + 1, device=means.device) * PRIMES[0] % PRIMES[1]
    checksums = (bits * weights).sum(dim=2)  # integers: equal rows have equal ones on every device
    return (checksums[:, :, None] == checksums[:, None]).long().argmax(dim=2)


class CommitmentLoss(torch.autograd.Function):
    """`_square_apart`: nothing of [B, H, T, K] is made before the backward."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, lengths: Tensor, clusters: Tensor, cosines: Tensor, means: Tensor
    ) -> Tensor:
        real = clusters < means.shape[1]
        count = real.sum().clamp(min=1) * x.shape[3]
        ctx.save_for_backward(x, lengths, clusters, cosines, means, count)
        # both are of length one
        return (2 - 2 * cosines).clamp(min=0).masked_fill(~real, 0.0).sum() / count

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, lengths, clusters, cosines, means, count = ctx.saved_tensors
        if torch.is_grad_enabled():  # `create_graph=True`: by the formula, which can be differentiated again
            (back,) = torch.autograd.grad(_square_apart(x, clusters, means), x, grad, create_graph=True)
            return back, None, None, None, None
        ends = F.pad(means, (0, 0, 0, 1))  # [H, C + 1, K]: padded tokens have none
        # token by token, as the vectors lie in memory
        numbers = clusters.transpose(1, 2) + torch.arange(len(ends), device=x.device) * ends.shape[1]
        near = ends.flatten(0, 1).index_select(0, numbers.flatten()).view(*numbers.shape, -1).transpose(1, 2)
        factor = -2 * grad / count / lengths
        factor = factor.masked_fill(clusters >= means.shape[1], 0.0)[..., None]
        back = near.mul_(factor).addcmul_(x, factor * (cosines / lengths)[..., None], value=-1)
        return back, None, None, None, None


def commitment_loss(x: Tensor, lengths: Tensor, clusters: Tensor, cosines: Tensor, means: Tensor) -> Tensor:
    """The mean square of what parts the directions of x from their centroids; over real tokens and numbers.

    Args:
        x, lengths: [B, H, T, K] and [B, H, T].
        clusters, cosines: [B, H, T], which centroid is each one's, C for nobody's, and how near.
        means: [H, C, K] of unit length.
    """
    if transformed():
        return _square_apart(x, clusters, means)
    loss: Tensor = CommitmentLoss.apply(x, lengths, clusters, cosines, means)
    return loss


def _square_apart(x: Tensor, clusters: Tensor, means: Tensor) -> Tensor:
    """The formula as it is written, for transforms of `torch.func` and second derivatives."""
    real = clusters < means.shape[1]
    every = cosines(l2_normalize(x), means)
    near = every.gather(3, clusters.clamp(max=means.shape[1] - 1)[..., None])[..., 0]
    return (2 - 2 * near).masked_fill(~real, 0.0).sum() / (real.sum().clamp(min=1) * x.shape[3])


class ClusterStats(NamedTuple):
    """What tokens say of their centroids.

    Attributes:
        counts: [H, C], tokens of each cluster.
        sums: [H, C, K] of their vectors.
        cosines: [H, C], the smallest between a centroid and one of its tokens; FARTHEST where there is none.
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
        """Both; the order does not matter."""
        nearer = (other.cosines < self.cosines)[..., None]
        return ClusterStats(
            self.counts + other.counts,
            self.sums + other.sums,
            torch.minimum(self.cosines, other.cosines),
            torch.where(nearer, other.farthest, self.farthest),
        )

    @staticmethod
    @torch.no_grad()
    def of(vectors: Tensor, clusters: Tensor, cosines: Tensor, count: int) -> ClusterStats:
        """Of vectors [B, H, T, K]; a cluster number of `count` is nobody's."""
        batch, heads, length, width = vectors.shape
        rows = vectors.transpose(0, 1).flatten(1, 2)  # [H, B * T, K]
        of, near = clusters.transpose(0, 1).flatten(1), cosines.transpose(0, 1).flatten(1)  # [H, B * T]
        counts = near.new_zeros(heads, count + 1).scatter_add_(1, of, torch.ones_like(near))
        # token by token, as the vectors lie in memory
        places = clusters.transpose(1, 2) + torch.arange(heads, device=rows.device) * (count + 1)
        sums = rows.new_zeros(heads * (count + 1), width)
        sums.index_add_(0, places.flatten(), vectors.transpose(1, 2).reshape(-1, width))
        sums = sums.unflatten(0, (heads, -1))
        least = torch.full_like(counts, FARTHEST).scatter_reduce_(1, of, near, "amin")
        tokens = torch.arange(batch * length, device=rows.device).expand_as(of)
        tokens = torch.where(near == least.gather(1, of), tokens, -1)
        last = torch.full_like(counts, -1, dtype=torch.long).scatter_reduce_(1, of, tokens, "amax")
        farthest = rows.gather(1, last.clamp(min=0)[..., None].expand(-1, -1, width))
        return ClusterStats(*(part[:, :count] for part in (counts, sums, least, farthest)))


class Centroids(NamedTuple):
    """Running sums and counts of each cluster, and the directions of the sums.

    Attributes:
        means: [H, C, K] of unit length.
        sums: [H, C, K].
        counts: [H, C].
    """

    means: Tensor
    sums: Tensor
    counts: Tensor


# Shares of what each cluster would hold if all were equal: below the first a cluster is dead, and one that is
# begun anew weighs the second.
DEAD, REBORN = 0.01, 0.1


@torch.no_grad()
def kmeans_step(now: Centroids, seen: ClusterStats, decay: float) -> Centroids:
    """Sums and counts move towards what was seen; heads that saw nothing stay.

    A dead cluster is begun anew at the token that lies farthest from its own centroid, of the cluster where
    that is farthest; several dead ones take one after the other.
    """
    any_seen = (seen.counts.sum(dim=1) > 0)[:, None]  # [H, 1]
    counts = torch.where(any_seen, torch.lerp(seen.counts, now.counts, decay), now.counts)
    sums = torch.where(any_seen[..., None], torch.lerp(seen.sums, now.sums, decay), now.sums)
    means = torch.where((counts > 0)[..., None], l2_normalize(sums), now.means)

    share = counts.mean(dim=1, keepdim=True)
    dead = (counts < DEAD * share) & any_seen
    ranked = seen.cosines.argsort(dim=1, stable=True)  # the farthest first, those that saw nothing last
    taker = (dead.cumsum(dim=1) - 1).clamp(min=0)
    giver = ranked.gather(1, taker)
    # a token at its own centroid would only double it
    apart = seen.cosines.gather(1, giver) < 1 - 1e-4
    reborn = (dead & apart)[..., None]
    fresh = seen.farthest.gather(1, giver[..., None].expand_as(means))
    weight = (REBORN * share)[..., None]
    return Centroids(
        torch.where(reborn, fresh, means),
        torch.where(reborn, fresh * weight, sums),
        torch.where(reborn[..., 0], weight[..., 0], counts),
    )
