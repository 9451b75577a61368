"""Attention to stretches of keys in the order of clusters, without a copy of what two queries share.

Queries and keys are sorted by cluster and time. What a query meets is then a stretch of the sorted keys whose
two ends never go back from one query to the next: a block of queries meets one slice. Blocks differ in size:
this is a loop of small products, for eager execution on CPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK = 64  # queries; 32 and 128 took longer at 8192 tokens


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


class _Head(NamedTuple):
    """One head of one row, sorted."""

    q: Tensor
    k: Tensor
    v: Tensor
    own_k: Tensor
    own_v: Tensor
    own: Tensor  # [T, 1], the score of a query's own key
    low: Tensor  # [T, 1]
    high: Tensor
    blocks: list[tuple[int, int, int, int]]  # queries from, to; keys from, to


def _head(q: Tensor, k: Tensor, v: Tensor, at: tuple[int, int], stretches: Stretches, scale: float) -> _Head:
    by_query, by_key, low, high = (part[at] for part in stretches[:4])
    q, own = q[at].index_select(0, by_query), by_query + stretches.own
    own_k, own_v = k[at].index_select(0, own), v[at].index_select(0, own)
    scores = (q * own_k).sum(dim=1, keepdim=True) * scale
    if stretches.alone:
        scores = scores.masked_fill((high > low)[:, None], float("-inf"))
    k, v = k[at].index_select(0, by_key), v[at].index_select(0, by_key)
    return _Head(q, k, v, own_k, own_v, scores, low[:, None], high[:, None], list(_blocks(low, high)))


def _blocks(low: Tensor, high: Tensor) -> Iterator[tuple[int, int, int, int]]:
    ends, begins = high.tolist(), low.tolist()
    for first in range(0, len(ends), BLOCK):
        last = min(first + BLOCK, len(ends))
        # a query that meets nobody may say anything
        yield first, last, min(begins[first:last]), max(ends[first:last])


def _scores(head: _Head, block: tuple[int, int, int, int], scale: float) -> Tensor:
    """[g, s], minus infinity beyond each query's stretch."""
    first, last, begin, end = block
    scores = (head.q[first:last] @ head.k[begin:end].mT).mul_(scale)
    keys = torch.arange(begin, end, device=scores.device)
    beyond = (keys < head.low[first:last]).logical_or_(keys >= head.high[first:last])
    return scores.masked_fill_(beyond, float("-inf"))


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: Stretches) -> Tensor:
        out = q.new_empty(*q.shape[:3], v.shape[3])
        for at in _places(q):
            head = _head(q, k, v, at, stretches, scale)
            sorted_out = torch.empty_like(out[at])
            for block in head.blocks:
                first, last, begin, end = block
                weights = _weights(head, block, scale)
                part = head.own_v[first:last] * weights[:, -1:]
                sorted_out[first:last] = part.addmm_(weights[:, :-1], head.v[begin:end])
            out[at] = sorted_out.index_select(0, _inverse(stretches.by_query[at]))
        ctx.save_for_backward(q, k, v, out)
        ctx.scale, ctx.stretches = scale, stretches
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out = ctx.saved_tensors
        scale, stretches = ctx.scale, ctx.stretches
        grads = [torch.empty_like(part) for part in (q, k, v)]
        for at in _places(q):
            head = _head(q, k, v, at, stretches, scale)
            by_query = stretches.by_query[at]
            of_out = grad[at].index_select(0, by_query)
            shared = (of_out * out[at].index_select(0, by_query)).sum(dim=1, keepdim=True)
            own = torch.empty_like(head.own)
            of_q = torch.empty_like(head.q)
            of_k, of_v = torch.zeros_like(head.k), torch.zeros_like(head.v)
            for block in head.blocks:
                first, last, begin, end = block
                weights = _weights(head, block, scale)
                own[first:last] = weights[:, -1:]
                weights, part = weights[:, :-1], of_out[first:last]
                of_v[begin:end].addmm_(weights.mT, part)
                of_scores = (part @ head.v[begin:end].mT).sub_(shared[first:last]).mul_(weights).mul_(scale)
                torch.mm(of_scores, head.k[begin:end], out=of_q[first:last])
                of_k[begin:end].addmm_(of_scores.mT, head.q[first:last])
            own_score = own * ((of_out * head.own_v).sum(dim=1, keepdim=True) - shared) * scale
            back, keys_back = _inverse(by_query), _inverse(stretches.by_key[at])
            grads[0][at] = of_q.addcmul_(own_score, head.own_k).index_select(0, back)
            grads[1][at] = of_k.index_select(0, keys_back)
            grads[2][at] = of_v.index_select(0, keys_back)
            # queries are the last of the keys
            grads[1][at][stretches.own :].add_((own_score * head.q).index_select(0, back))
            grads[2][at][stretches.own :].add_((own * of_out).index_select(0, back))
        return *grads, None, None


def _weights(head: _Head, block: tuple[int, int, int, int], scale: float) -> Tensor:
    """[g, s + 1], those of queries' own keys at the end."""
    first, last, _, _ = block
    return torch.cat([_scores(head, block, scale), head.own[first:last]], dim=1).softmax(dim=1)


def _inverse(order: Tensor) -> Tensor:
    """Where each stands in an order."""
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))


def _places(x: Tensor) -> Iterator[tuple[int, int]]:
    return ((row, head) for row in range(x.shape[0]) for head in range(x.shape[1]))


def attend_sorted(q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: Stretches) -> Tensor:
    """softmax(scale q k^T) v over each query's stretch and its own key.

    Args:
        q: [B, H, T, K], fp32 or fp64.
        k, v: [B, H, S, K] and [B, H, S, V].

    Returns:
        [B, H, T, V].
    """
    out: Tensor = _Attend.apply(q, k, v, scale, stretches)
    return out
