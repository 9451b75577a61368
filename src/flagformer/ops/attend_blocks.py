"""Attention to stretches of sorted keys: like blocks of queries together, by a few large products, on CPU."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.ops.blocks import KeyRangeBlocks
from flagformer.ops.key_ranges import KeyRanges
from flagformer.ops.row_view import RowView
from flagformer.ops.rowwise import addcmul_rows, rowwise_dot
from flagformer.ops.segment_sum import SegmentSum

BITS = math.log2(math.e)  # weights are powers of two: exp takes fifty times as long where it gives zero


class ForwardResult(NamedTuple):
    """What queries are given: [B, H, T, V], and [B, H, T] the logarithm to base 2 of the sum of their
    exponentials, and the weight of their own key."""

    out: Tensor
    lse2: Tensor
    self_prob: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, stretches: KeyRanges, scale: float, to: ForwardResult) -> None:
    """Writes softmax(scale q k^T) v over each query's stretch and its own key."""
    blocks, mine = KeyRangeBlocks.of(stretches), stretches.mine
    own, nothing = rowwise_dot(q, k[:, :, mine]).mul_(scale * BITS), q.new_zeros(())
    of_q, of_k, of_v = (RowView.of(x, q.shape[1]) for x in (q, k, v))
    out = q.new_empty(blocks.queries.numel(), v.shape[3])
    sums, shares = (q.new_empty(len(out), 1) for _ in range(2))
    for batch in blocks.batches(q.dtype):
        asking = of_q.at(batch.queries).mul_(scale * BITS)
        scores = batch.range_mask(nothing).baddbmm_(asking, of_k.at(batch.keys).mT)
        at_own = batch.gather_rows(own)
        if stretches.alone:
            at_own.masked_fill_(batch.half_width >= 0, float("-inf"))
        top = torch.maximum(scores.amax(dim=2, keepdim=True), at_own)
        weights, at_own = scores.sub_(top).exp2_(), at_own.sub_(top).exp2_()
        total = weights.sum(dim=2, keepdim=True).add_(at_own)
        torch.bmm(weights, of_v.at(batch.keys), out=batch.gather_queries(out)).div_(total)
        torch.div(at_own, total, out=batch.gather_queries(shares))
        torch.add(total.log2_(), top, out=batch.gather_queries(sums))
    out, sums, shares = (blocks.to_queries(x).view(*q.shape[:3], -1) for x in (out, sums, shares))
    to.lse2.copy_(sums[..., 0])
    to.self_prob.copy_(shares[..., 0])
    addcmul_rows(out, to.self_prob, v[:, :, mine], out=to.out)


class QKV(NamedTuple):
    """Queries, keys and values, or the gradients to them."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend_backward(
    grad: Tensor, x: QKV, given: ForwardResult, stretches: KeyRanges, scale: float, to: QKV
) -> None:
    """Writes the gradients to queries, keys and values, of that to what the queries were given."""
    blocks, mine, heads = KeyRangeBlocks.of(stretches), stretches.mine, x.q.shape[1]
    shared = rowwise_dot(grad, given.out)
    of_own = rowwise_dot(grad, x.v[:, :, mine]).sub_(shared).mul_(given.self_prob).mul_(scale)
    of_q, of_k, of_v, of_grad = (RowView.of(rows, heads) for rows in (*x, grad))
    to_q = x.q.new_empty(blocks.queries.numel(), x.q.shape[3])
    to_k, to_v = (rows.new_empty(blocks.places()[-1], rows.shape[3]) for rows in (x.k, x.v))
    for batch in blocks.batches(grad.dtype):
        asking, asked = of_q.at(batch.queries).mul_(scale * BITS), of_k.at(batch.keys)
        part = of_grad.at(batch.queries)
        weights = batch.range_mask(batch.gather_rows(given.lse2).neg_()).baddbmm_(asking, asked.mT).exp2_()
        torch.bmm(weights.mT, part, out=batch.gather_keys(to_v))
        of_scores = torch.bmm(part, of_v.at(batch.keys).mT).sub_(batch.gather_rows(shared)).mul_(weights)
        # the logarithms that q makes are to base 2, those of the softmax to base e
        batch.gather_keys(to_k).baddbmm_(of_scores.mT, asking, beta=0, alpha=1 / BITS)
        batch.gather_queries(to_q).baddbmm_(of_scores, asked, beta=0, alpha=scale)
    addcmul_rows(blocks.to_queries(to_q).view_as(x.q), of_own, x.k[:, :, mine], out=to.q)
    bags = SegmentSum.of(blocks)
    _to_keys(bags.sums(to_k), of_own, x.q, mine, out=to.k)
    _to_keys(bags.sums(to_v), given.self_prob, grad, mine, out=to.v)


def _to_keys(found: Tensor, factors: Tensor, x: Tensor, mine: slice, out: Tensor) -> None:
    """Writes what was found for the keys of each head [B * H * S, K], and factors times x for the queries'
    own, to out [B, G, S, K]."""
    heads, (groups, length) = x.shape[1], out.shape[1:3]
    found = found.view(-1, heads, length, out.shape[3])
    if groups == heads and length == x.shape[2]:
        addcmul_rows(found, factors, x, out=out)
    else:
        found[:, :, mine].addcmul_(factors[..., None], x)
        torch.sum(found.unflatten(1, (groups, -1)), dim=2, out=out)
