"""Attention to stretches of keys in the order of clusters, without scores of what never meets.

Queries and keys are sorted by cluster and time. What a query meets is then a stretch of the sorted keys;
its ends never go back from one query to the next: a block of queries meets one stretch. Blocks whose stretches
are about as long, of whatever head, are served together: few large products, for eager execution on CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 32  # queries; larger ones meet more that is none of theirs
SCORES = 1 << 17  # of the blocks served together, which stay in a core's cache
FAR = 1e30  # taken off a score for each key beyond a query's stretch
BITS = math.log2(math.e)  # weights are powers of two: exp takes fifty times as long where it gives zero


class Stretches(NamedTuple):
    """Who meets whom; every tensor [B, H, ...] long.

    Attributes:
        by_query: [B, H, T], the queries in order.
        by_key: [B, H, S], the keys in order.
        low, high: [B, H, T], the sorted keys that each sorted query meets, beside its own.
        own: of the keys, which is the first query's own.
        alone: whether a query meets its own key only where it meets no other.
    """

    by_query: Tensor
    by_key: Tensor
    low: Tensor
    high: Tensor
    own: int
    alone: bool


class _Batch(NamedTuple):
    """I blocks of g queries, each against a stretch of s keys.

    Attributes:
        size: g.
        queries: which of all queries in the order of batches these are.
        keys: [I * s] long, of all keys in order.
        own: [I * g] long, the queries' own keys, of all keys in order.
        middle, half: [I, g, 1], of each query's stretch, counted in the s keys: those no farther from its
            middle than half its length are met; half is negative where none is.
    """

    size: int
    queries: slice
    keys: Tensor
    own: Tensor
    middle: Tensor
    half: Tensor

    def of_queries(self, x: Tensor) -> Tensor:
        return x[self.queries].unflatten(0, (-1, self.size))

    def of_keys(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.keys).unflatten(0, (len(self.middle), -1))

    def of_own(self, x: Tensor) -> Tensor:
        return x.index_select(0, self.own).unflatten(0, (-1, self.size))


class _Order(NamedTuple):
    """In which order queries and keys are served.

    Attributes:
        queries: [B * H * T] long, of each query its number in B * H * T.
        keys: [B * H * S] long, likewise.
    """

    queries: Tensor
    keys: Tensor
    batches: list[_Batch]


def _order(stretches: Stretches, kind: torch.dtype) -> _Order:
    """All blocks, the longest stretches first; last blocks of fewer queries apart from the others."""
    keys = _numbers(stretches.by_key)
    places = _inverse(keys).view_as(stretches.by_key)
    own = places[:, :, stretches.own :].gather(2, stretches.by_query)
    numbers = _numbers(stretches.by_query).view_as(own)
    # of all rows and heads, one behind the other
    ahead = _along(stretches.by_key)
    ends = stretches.low + ahead, stretches.high + ahead
    length, queries, batches = own.shape[2], [], []
    whole = length - length % BLOCK
    for first, last in ((0, whole), (whole, length)):
        if first < last:
            size = min(BLOCK, last - first)
            low, high, of_own, of_part = (
                part[:, :, first:last].reshape(-1, size) for part in (*ends, own, numbers)
            )
            spans = (high[:, -1] - low[:, 0]).sort(descending=True)
            queries.append(of_part[spans.indices].flatten())
            begin = 0 if not batches else batches[-1].queries.stop
            sorted_parts = (part[spans.indices] for part in (low, high, of_own))
            batches += _batches(*sorted_parts, spans.values.tolist(), begin, len(keys), kind)
    return _Order(torch.cat(queries), keys, batches)


def _batches(
    low: Tensor, high: Tensor, own: Tensor, spans: list[int], begin: int, total: int, kind: torch.dtype
) -> Iterator[_Batch]:
    """Of blocks [N, g] in order, behind `begin` queries of other blocks; there are `total` keys."""
    size, first = low.shape[1], 0
    while first < len(spans):
        longest = max(spans[first], 1)
        last = min(first + max(SCORES // (size * longest), 1), len(spans))
        start = low[first:last, :1]
        keys = (start + torch.arange(longest, device=low.device)).clamp_(max=total - 1)
        begins, ends = ((part[first:last] - start)[..., None].to(kind) for part in (low, high))
        yield _Batch(
            size,
            slice(begin + first * size, begin + last * size),
            keys.flatten(),
            own[first:last].flatten(),
            (begins + ends - 1) / 2,
            (ends - begins - 1) / 2,
        )
        first = last


def _along(order: Tensor) -> Tensor:
    """[B, H, 1]: how many stand in the rows and heads before, for an order [B, H, n]."""
    batch, heads, length = order.shape
    return torch.arange(0, batch * heads * length, length, device=order.device).view(batch, heads, 1)


def _numbers(order: Tensor) -> Tensor:
    """An order [B, H, n] of n -> one [B * H * n] of all."""
    return (order + _along(order)).flatten()


def _inverse(order: Tensor) -> Tensor:
    """Where each stands in an order."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _ordered(x: Tensor, order: Tensor, heads: int) -> Tensor:
    """[B, G, n, K] -> [B * H * n, K]; a group serves H / G heads. Reads rows wherever they lie."""
    width, share = x.shape[3], heads // x.shape[1]
    if x.stride(3) != 1 or any(step % width for step in x.stride()[:3]):
        x = x.contiguous()
    spans = [torch.arange(size, device=x.device) for size in (x.shape[0], heads, x.shape[2])]
    steps = [step // width for step in x.stride()[:3]]
    row, head, place = spans[0] * steps[0], spans[1] // share * steps[1], spans[2] * steps[2]
    rows = (row[:, None, None] + head[:, None] + place).flatten()
    count = 1 + sum((size - 1) * step for size, step in zip(x.shape, steps))
    return x.as_strided((count, width), (width, 1)).index_select(0, rows.index_select(0, order))


def _put_back(x: Tensor, order: Tensor, batch: int, groups: int, heads: int) -> Tensor:
    """[B * H * n, K] -> [B, G, n, K], sums over the heads of a group; heads of a token lie side by side."""
    rows = _inverse(order).view(batch, heads, -1).transpose(1, 2)  # [B, n, H]
    found = x.index_select(0, rows.flatten()).view(*rows.shape, -1)
    if groups < heads:
        found = found.unflatten(2, (groups, -1)).sum(dim=3)
    return found.transpose(1, 2)


class _Asked(NamedTuple):
    """What a batch reads of queries and keys, and what comes of it; scores are logarithms to base 2."""

    q: Tensor  # [I, g, K], scaled
    k: Tensor  # [I, s, K]
    own_k: Tensor  # [I, g, K]
    scores: Tensor  # [I, g, s], far below any other beyond a query's stretch
    own: Tensor  # [I, g, 1], the score of a query's own key


def _ask(batch: _Batch, all_q: Tensor, all_k: Tensor, alone: bool) -> _Asked:
    q, k, own_k = batch.of_queries(all_q), batch.of_keys(all_k), batch.of_own(all_k)
    numbers = torch.arange(k.shape[1], device=q.device, dtype=q.dtype)
    # numbers in place of truth values: comparing and filling take several times as long
    beyond = (numbers - batch.middle).abs_().sub_(batch.half).clamp_(min=0)
    scores = torch.bmm(q, k.mT).sub_(beyond, alpha=FAR)
    own = (q * own_k).sum(dim=2, keepdim=True)
    if alone:
        own = own.masked_fill_(batch.half >= 0, float("-inf"))
    return _Asked(q, k, own_k, scores, own)


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: Stretches) -> Tensor:
        order, heads = _order(stretches, q.dtype), q.shape[1]
        all_q = _ordered(q, order.queries, heads).mul_(scale * BITS)
        all_k, all_v = _ordered(k, order.keys, heads), _ordered(v, order.keys, heads)
        out, sums = all_v.new_empty(len(all_q), v.shape[3]), all_q.new_empty(len(all_q), 1)
        for batch in order.batches:
            asked = _ask(batch, all_q, all_k, stretches.alone)
            top = torch.maximum(asked.scores.amax(dim=2, keepdim=True), asked.own)
            weights, own = asked.scores.sub_(top).exp2_(), asked.own.sub_(top).exp2_()
            total = weights.sum(dim=2, keepdim=True).add_(own)
            part = torch.bmm(weights, batch.of_keys(all_v), out=batch.of_queries(out))
            part.addcmul_(own, batch.of_own(all_v)).div_(total)
            batch.of_queries(sums).copy_(total.log2_().add_(top))
        ctx.save_for_backward(all_q, all_k, all_v, out, sums)
        ctx.order, ctx.scale, ctx.alone, ctx.shapes = (
            order,
            scale,
            stretches.alone,
            (q.shape, k.shape, v.shape),
        )
        return _put_back(out, order.queries, len(q), heads, heads)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        all_q, all_k, all_v, out, sums = ctx.saved_tensors
        rows, heads = ctx.shapes[0][:2]
        of_out = _ordered(grad, ctx.order.queries, heads)
        shared = (of_out * out).sum(dim=1, keepdim=True)
        of_q, of_k, of_v = torch.empty_like(all_q), torch.zeros_like(all_k), torch.zeros_like(all_v)
        for batch in ctx.order.batches:
            asked = _ask(batch, all_q, all_k, ctx.alone)
            log_sum, less, of_part = (batch.of_queries(x) for x in (sums, shared, of_out))
            weights, own = asked.scores.sub_(log_sum).exp2_(), asked.own.sub_(log_sum).exp2_()
            of_v.index_add_(0, batch.keys, torch.bmm(weights.mT, of_part).flatten(0, 1))
            of_v.index_add_(0, batch.own, (own * of_part).flatten(0, 1))
            of_scores = torch.bmm(of_part, batch.of_keys(all_v).mT).sub_(less).mul_(weights)
            of_own = (of_part * batch.of_own(all_v)).sum(dim=2, keepdim=True).sub_(less).mul_(own)
            of_k.index_add_(0, batch.keys, torch.bmm(of_scores.mT, asked.q).flatten(0, 1))
            of_k.index_add_(0, batch.own, (of_own * asked.q).flatten(0, 1))
            of_query = torch.bmm(of_scores, asked.k, out=batch.of_queries(of_q))
            of_query.addcmul_(of_own, asked.own_k)
        orders = ctx.order.queries, ctx.order.keys, ctx.order.keys
        found = of_q.mul_(ctx.scale), of_k.mul_(1 / BITS), of_v
        grads = (
            _put_back(x, order, rows, shape[1], heads) for x, order, shape in zip(found, orders, ctx.shapes)
        )
        return *grads, None, None


def attend_sorted(q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: Stretches) -> Tensor:
    """softmax(scale q k^T) v over each query's stretch and its own key.

    Args:
        q: [B, H, T, K], fp32 or fp64.
        k, v: [B, G, S, K] and [B, G, S, V]; a group serves H / G consecutive heads.

    Returns:
        [B, H, T, V].
    """
    out: Tensor = _Attend.apply(q, k, v, scale, stretches)
    return out
