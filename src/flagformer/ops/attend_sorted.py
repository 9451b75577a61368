"""Attention to stretches of keys in the order of clusters, without scores of what never meets.

Queries and keys are sorted by cluster and time. What a query meets is then a stretch of sorted keys whose
ends never go back from one query to the next: a block of queries meets one stretch. Blocks whose stretches
are about as long are served together: few large products, for eager execution on CPU. Vectors are read and
written where they lie.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flagformer.ops.row_products import add_products, dots, own_rows, put_products

BLOCK = 64  # queries: smaller ones read keys more often, larger ones meet more that is none of theirs
SCORES = 1 << 18  # of the blocks served together, which stay in a core's cache
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
        queries: [I, g] long, numbers of queries in B * H * T.
        keys: [I, s] long, numbers of keys in B * H * S.
        middle, half: [I, g, 1], of each query's stretch, counted in the s keys: those no farther from its
            middle than half its length are met; half is negative where none is.
    """

    queries: Tensor
    keys: Tensor
    middle: Tensor
    half: Tensor

    def of(self, x: Tensor) -> Tensor:
        """What the queries have in x [B, H, T], [I, g, 1]."""
        return x.view(-1).index_select(0, self.queries.flatten()).view_as(self.half)

    def put(self, x: Tensor, values: Tensor) -> None:
        """Writes values [I, g, 1] to the places of the queries in x [B, H, T]."""
        x.view(-1).index_copy_(0, self.queries.flatten(), values.flatten())


def _batches(stretches: Stretches, kind: torch.dtype) -> Iterator[_Batch]:
    """All blocks, the longest stretches first; a last block of fewer queries apart from the others."""
    ahead = _ahead(stretches.by_query, stretches.by_query), _ahead(stretches.by_query, stretches.by_key)
    parts = stretches.by_query + ahead[0], stretches.low + ahead[1], stretches.high + ahead[1]
    by_key = (stretches.by_key + ahead[1]).flatten()
    length = stretches.low.shape[2]
    whole = length - length % BLOCK
    for first, last in ((0, whole), (whole, length)):
        if first < last:
            of_size = [part[:, :, first:last].reshape(-1, min(BLOCK, last - first)) for part in parts]
            yield from _of_size(of_size, by_key, kind)


def _ahead(queries: Tensor, of: Tensor) -> Tensor:
    """[B, H, 1]: how many of `of` [B, H, n] stand in the rows and heads before."""
    batch, heads, length = of.shape
    return torch.arange(0, batch * heads * length, length, device=queries.device).view(batch, heads, 1)


def _of_size(parts: list[Tensor], by_key: Tensor, kind: torch.dtype) -> Iterator[_Batch]:
    """Of blocks [N, g] of queries and both ends of their stretches."""
    spans, order = (parts[2][:, -1] - parts[1][:, 0]).sort(descending=True)
    queries, low, high = (part.index_select(0, order) for part in parts)
    lengths, first = spans.tolist(), 0
    while first < len(lengths):
        longest = max(lengths[first], 1)
        last = first + max(SCORES // (low.shape[1] * longest), 1)
        start = low[first:last, :1]
        places = (start + torch.arange(longest, device=low.device)).clamp_(max=len(by_key) - 1)
        begins, ends = ((part[first:last] - start)[..., None].to(kind) for part in (low, high))
        yield _Batch(queries[first:last], by_key[places], (begins + ends - 1) / 2, (ends - begins - 1) / 2)
        first = last


class _Rows(NamedTuple):
    """The vectors of a tensor, read and written by their number wherever they lie in memory.

    Attributes:
        rows: [R, K].
        where: [B * H * n] long, the row of each vector.
    """

    rows: Tensor
    where: Tensor

    @staticmethod
    def of(x: Tensor, heads: int) -> _Rows:
        """Of x [B, G, n, K]; a group serves H / G heads."""
        width, share = x.shape[3], heads // x.shape[1]
        if x.stride(3) != 1 or any(step % width for step in x.stride()[:3]):
            x = x.contiguous()
        row, head, place = (step // width for step in x.stride()[:3])
        of_row, of_head, of_place = (
            torch.arange(size, device=x.device) for size in (x.shape[0], heads, x.shape[2])
        )
        where = (of_row * row)[:, None, None] + (of_head // share * head)[:, None] + of_place * place
        rows = x.as_strided((int(where[-1, -1, -1]) + 1, width), (width, 1))
        return _Rows(rows, where.flatten())

    def located(self, numbers: Tensor) -> Tensor:
        return self.where.index_select(0, numbers.flatten())

    def at(self, numbers: Tensor) -> Tensor:
        """[I, n] -> [I, n, K]."""
        return self.rows.index_select(0, self.located(numbers)).view(*numbers.shape, -1)

    def put(self, numbers: Tensor, x: Tensor) -> None:
        self.rows.index_copy_(0, self.located(numbers), x.flatten(0, 1))

    def add(self, numbers: Tensor, x: Tensor) -> None:
        self.rows.index_add_(0, self.located(numbers), x.flatten(0, 1))


class _Asked(NamedTuple):
    """What a batch reads of queries and keys, and what comes of it; scores are logarithms to base 2."""

    q: Tensor  # [I, g, K], scaled
    k: Tensor  # [I, s, K]
    scores: Tensor  # [I, g, s], far below any other beyond a query's stretch


def _ask(batch: _Batch, of_q: _Rows, of_k: _Rows, scale: float) -> _Asked:
    q, k = of_q.at(batch.queries).mul_(scale * BITS), of_k.at(batch.keys)
    numbers = torch.arange(k.shape[1], device=q.device, dtype=q.dtype)
    # numbers in place of truth values: comparing and filling take several times as long
    beyond = (numbers - batch.middle).abs_().sub_(batch.half).clamp_(min=0)
    return _Asked(q, k, torch.bmm(q, k.mT).sub_(beyond, alpha=FAR))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: Stretches) -> Tensor:
        out = _beside(q.new_empty, (*q.shape[:3], v.shape[3]))
        of_q, of_k, of_v, of_out = (_Rows.of(x, q.shape[1]) for x in (q, k, v, out))
        keys, values = (own_rows(x, stretches.own, q.shape[2]) for x in (k, v))
        batches, own = list(_batches(stretches, q.dtype)), dots(q, keys).mul_(scale * BITS)
        sums, shares = torch.empty_like(own), torch.empty_like(own)
        for batch in batches:
            scores, mine = _ask(batch, of_q, of_k, scale).scores, batch.of(own)
            if stretches.alone:
                mine.masked_fill_(batch.half >= 0, float("-inf"))
            top = torch.maximum(scores.amax(dim=2, keepdim=True), mine)
            weights, mine = scores.sub_(top).exp2_(), mine.sub_(top).exp2_()
            total = weights.sum(dim=2, keepdim=True).add_(mine)
            of_out.put(batch.queries, torch.bmm(weights, of_v.at(batch.keys)).div_(total))
            batch.put(shares, mine.div_(total))
            batch.put(sums, total.log2_().add_(top))
        add_products(out, shares, values)
        ctx.save_for_backward(q, k, v, out, sums, shares)
        ctx.scale, ctx.own, ctx.batches = scale, stretches.own, batches
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, sums, shares = ctx.saved_tensors
        to_q, to_k, to_v = (_beside(x.new_empty, x.shape) for x in (q, k, v))
        keys, values = (own_rows(x, ctx.own, q.shape[2]) for x in (k, v))
        shared = dots(grad, out)
        of_own = dots(grad, values).sub_(shared).mul_(shares)
        put_products(to_k, ctx.own, of_own * ctx.scale, q)
        put_products(to_v, ctx.own, shares, grad)
        of_q, of_k, of_v, of_grad = (_Rows.of(x, q.shape[1]) for x in (q, k, v, grad))
        of_to_q, of_to_k, of_to_v = (_Rows.of(x, q.shape[1]) for x in (to_q, to_k, to_v))
        for batch in ctx.batches:
            asked, of_part = _ask(batch, of_q, of_k, ctx.scale), of_grad.at(batch.queries)
            weights = asked.scores.sub_(batch.of(sums)).exp2_()
            of_to_v.add(batch.keys, torch.bmm(weights.mT, of_part))
            of_scores = torch.bmm(of_part, of_v.at(batch.keys).mT).sub_(batch.of(shared)).mul_(weights)
            # the logarithms that q makes are to base 2, those of the softmax to base e
            of_to_k.add(batch.keys, torch.bmm(of_scores.mT, asked.q.mul_(1 / BITS)))
            of_to_q.put(batch.queries, torch.bmm(of_scores, asked.k).mul_(ctx.scale))
        add_products(to_q, of_own.mul_(ctx.scale), keys)
        return to_q, to_k, to_v, None, None


def _beside(make: Callable[[tuple[int, ...]], Tensor], shape: tuple[int, ...]) -> Tensor:
    """[B, H, T, K] such that the heads of a token lie side by side, as what comes next reads them."""
    batch, heads, length, width = shape
    return make((batch, length, heads, width)).transpose(1, 2)


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
