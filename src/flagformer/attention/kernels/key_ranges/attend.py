"""Attention to ranges of sorted keys on CPU: blocks of similar size share a few large matrix products."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.attention.kernels.key_ranges.blocks import KeyRangeBlocks
from flagformer.attention.kernels.key_ranges.ranges import KeyRanges
from flagformer.attention.kernels.key_ranges.row_view import RowView
from flagformer.attention.kernels.key_ranges.rowwise import addcmul_rows, rowwise_dot
from flagformer.attention.kernels.key_ranges.segment_sum import SegmentSum

LOG2_E = math.log2(math.e)  # exp2 replaces exp, which takes fifty times as long where it underflows to zero


class ForwardResult(NamedTuple):
    """The results of a forward that its backward needs.

    Attributes:
        out: [B, H, T, V].
        lse2: [B, H, T], the log-sum-exp of the scores to base 2.
        self_prob: [B, H, T], the attention probability of each query's own key.
    """

    out: Tensor
    lse2: Tensor
    self_prob: Tensor


def attend(q: Tensor, k: Tensor, v: Tensor, ranges: KeyRanges, scale: float, to: ForwardResult) -> None:
    """Write softmax(scale q k^T) v over each query's key range and its own key to `to`."""
    blocks, self_keys = KeyRangeBlocks.of(ranges), ranges.self_keys
    self_logits, zero = rowwise_dot(q, k[:, :, self_keys]).mul_(scale * LOG2_E), q.new_zeros(())
    q_rows, k_rows, v_rows = (RowView.of(x, q.shape[1]) for x in (q, k, v))
    out = q.new_empty(blocks.queries.numel(), v.shape[3])
    lse2, self_prob = (q.new_empty(len(out), 1) for _ in range(2))
    for batch in blocks.batches(q.dtype):
        q_block = q_rows.at(batch.queries).mul_(scale * LOG2_E)
        scores = batch.range_mask(zero).baddbmm_(q_block, k_rows.at(batch.keys).mT)
        self_scores = batch.gather_rows(self_logits)
        if ranges.mask_self_unless_alone:
            self_scores.masked_fill_(batch.half_width >= 0, float("-inf"))
        row_max = torch.maximum(scores.amax(dim=2, keepdim=True), self_scores)
        weights, self_weights = scores.sub_(row_max).exp2_(), self_scores.sub_(row_max).exp2_()
        total = weights.sum(dim=2, keepdim=True).add_(self_weights)
        torch.bmm(weights, v_rows.at(batch.keys), out=batch.gather_queries(out)).div_(total)
        torch.div(self_weights, total, out=batch.gather_queries(self_prob))
        torch.add(total.log2_(), row_max, out=batch.gather_queries(lse2))
    out, lse2, self_prob = (blocks.to_queries(x).view(*q.shape[:3], -1) for x in (out, lse2, self_prob))
    to.lse2.copy_(lse2[..., 0])
    to.self_prob.copy_(self_prob[..., 0])
    addcmul_rows(out, to.self_prob, v[:, :, self_keys], out=to.out)


class QKV(NamedTuple):
    """Queries, keys and values, or their gradients."""

    q: Tensor
    k: Tensor
    v: Tensor


def attend_backward(
    grad: Tensor, x: QKV, result: ForwardResult, ranges: KeyRanges, scale: float, to: QKV
) -> None:
    """Write the gradients of queries, keys and values to `to`; `grad` is the gradient of `result.out`."""
    blocks, self_keys, heads = KeyRangeBlocks.of(ranges), ranges.self_keys, x.q.shape[1]
    delta = rowwise_dot(grad, result.out)
    self_grad = rowwise_dot(grad, x.v[:, :, self_keys]).sub_(delta).mul_(result.self_prob).mul_(scale)
    q_rows, k_rows, v_rows, grad_rows = (RowView.of(rows, heads) for rows in (*x, grad))
    dq = x.q.new_empty(blocks.queries.numel(), x.q.shape[3])
    dk, dv = (rows.new_empty(blocks.key_offsets()[-1], rows.shape[3]) for rows in (x.k, x.v))
    for batch in blocks.batches(grad.dtype):
        q_block, k_block = q_rows.at(batch.queries).mul_(scale * LOG2_E), k_rows.at(batch.keys)
        grad_block = grad_rows.at(batch.queries)
        negative_lse = batch.gather_rows(result.lse2).neg_()
        weights = batch.range_mask(negative_lse).baddbmm_(q_block, k_block.mT).exp2_()
        torch.bmm(weights.mT, grad_block, out=batch.gather_keys(dv))
        dscores = torch.bmm(grad_block, v_rows.at(batch.keys).mT).sub_(batch.gather_rows(delta)).mul_(weights)
        # q_block is scaled for scores to base 2, the softmax has base e
        batch.gather_keys(dk).baddbmm_(dscores.mT, q_block, beta=0, alpha=1 / LOG2_E)
        batch.gather_queries(dq).baddbmm_(dscores, k_block, beta=0, alpha=scale)
    addcmul_rows(blocks.to_queries(dq).view_as(x.q), self_grad, x.k[:, :, self_keys], out=to.q)
    segments = SegmentSum.of(blocks)
    _to_keys(segments.sums(dk), self_grad, x.q, self_keys, out=to.k)
    _to_keys(segments.sums(dv), result.self_prob, grad, self_keys, out=to.v)


def _to_keys(sums: Tensor, factors: Tensor, x: Tensor, self_keys: slice, out: Tensor) -> None:
    """Write `sums` [B * H * S, K], plus factors * x at the queries' own keys, to `out` [B, G, S, K]."""
    heads, (groups, length) = x.shape[1], out.shape[1:3]
    sums = sums.view(-1, heads, length, out.shape[3])
    if groups == heads and length == x.shape[2]:
        addcmul_rows(sums, factors, x, out=out)
    else:
        sums[:, :, self_keys].addcmul_(factors[..., None], x)
        torch.sum(sums.unflatten(1, (groups, -1)), dim=2, out=out)
