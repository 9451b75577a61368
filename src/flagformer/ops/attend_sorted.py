"""Attention to stretches of keys in the order of clusters, without scores of what never meets.

Queries and keys are sorted by cluster and time. What a query meets is then a stretch of sorted keys whose
ends never go back from one query to the next: a block of queries meets one stretch. Blocks whose stretches
are about as long are served together: few large products, on CPU. Vectors are read and written where they
lie. Operators that torch traces whole.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flagformer.ops.row_products import add_products, dots, pieces, put_products
from flagformer.ops.rows import Rows
from flagformer.ops.stretches import Stretches, batches_of

BITS = math.log2(math.e)  # weights are powers of two: exp takes fifty times as long where it gives zero
PLACES = "Tensor by_query, Tensor by_key, Tensor low, Tensor high, int own, bool alone, float scale"


def _beside(like: Tensor, width: int) -> Tensor:
    """[B, H, T, width] such that the heads of a token lie side by side, as what comes next reads them."""
    batch, heads, length = like.shape[:3]
    return like.new_empty(batch, length, heads, width).transpose(1, 2)


@torch.library.custom_op(
    "flagformer::attend_sorted",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {PLACES}) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def attend(q: Tensor, k: Tensor, v: Tensor, *places: Any) -> tuple[Tensor, Tensor, Tensor]:
    """What each query is given [B, H, T, V], and by query [B, H, T]: the logarithm to base 2 of the sum of
    its exponentials, and the weight of its own key."""
    *given, scale = places
    stretches = Stretches(*given)
    out, own = _beside(q, v.shape[3]), q.new_empty(q.shape[:3])
    first, nothing = stretches.own, q.new_zeros(())
    mine = slice(first, first + q.shape[2])
    keys, values = k[:, :, mine], v[:, :, mine]
    for piece in pieces(q):
        own[:, :, piece] = dots(q[:, :, piece], keys[:, :, piece]).mul_(scale * BITS)
    of_q, of_k, of_v, of_out = (Rows.of(x, q.shape[1]) for x in (q, k, v, out))
    sums, shares = torch.empty_like(own), torch.empty_like(own)
    for batch in batches_of(stretches, q.dtype):
        asking = of_q.at(batch.queries).mul_(scale * BITS)
        scores = batch.inside(nothing).baddbmm_(asking, of_k.at(batch.keys).mT)
        at_own = batch.of(own)
        if stretches.alone:
            at_own.masked_fill_(batch.half >= 0, float("-inf"))
        top = torch.maximum(scores.amax(dim=2, keepdim=True), at_own)
        weights, at_own = scores.sub_(top).exp2_(), at_own.sub_(top).exp2_()
        total = weights.sum(dim=2, keepdim=True).add_(at_own)
        of_out.put(batch.queries, torch.bmm(weights, of_v.at(batch.keys)).div_(total))
        batch.put(shares, at_own.div_(total))
        batch.put(sums, total.log2_().add_(top))
    for piece in pieces(out):
        add_products(out[:, :, piece], shares[:, :, piece], values[:, :, piece])
    return out, sums, shares


@attend.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *places: Any) -> tuple[Tensor, Tensor, Tensor]:
    sums = q.new_empty(q.shape[:3])
    return _beside(q, v.shape[3]), sums, torch.empty_like(sums)


@torch.library.custom_op(
    "flagformer::attend_sorted_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor sums, Tensor shares,"
        f" {PLACES}) -> (Tensor, Tensor, Tensor)"
    ),
    device_types="cpu",
)
def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, sums: Tensor, shares: Tensor, *places: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to q, k and v."""
    *given, scale = places
    stretches = Stretches(*given)
    to_q, to_k, to_v = (_beside(x, x.shape[3]) for x in (q, k, v))
    shared, of_own = torch.empty_like(sums), torch.empty_like(sums)
    first, length = stretches.own, q.shape[2]
    mine = slice(first, first + length)
    keys, values, to_keys, to_values = (x[:, :, mine] for x in (k, v, to_k, to_v))
    for x in (to_k, to_v):
        x[:, :, :first] = 0
        x[:, :, first + length :] = 0
    for piece in pieces(grad):
        part, share = grad[:, :, piece], shares[:, :, piece]
        both = dots(part, out[:, :, piece])
        shared[:, :, piece] = both
        of = dots(part, values[:, :, piece]).sub_(both).mul_(share).mul_(scale)
        of_own[:, :, piece] = of
        put_products(to_keys[:, :, piece], of, q[:, :, piece])
        put_products(to_values[:, :, piece], share, part)
    of_q, of_k, of_v, of_grad = (Rows.of(x, q.shape[1]) for x in (q, k, v, grad))
    of_to_q, of_to_k, of_to_v = (Rows.of(x, q.shape[1]) for x in (to_q, to_k, to_v))
    for batch in batches_of(stretches, q.dtype):
        asking, asked = of_q.at(batch.queries).mul_(scale * BITS), of_k.at(batch.keys)
        part = of_grad.at(batch.queries)
        weights = batch.inside(batch.of(sums).neg_()).baddbmm_(asking, asked.mT).exp2_()
        of_to_v.add(batch.keys, torch.bmm(weights.mT, part))
        of_scores = torch.bmm(part, of_v.at(batch.keys).mT).sub_(batch.of(shared)).mul_(weights)
        # the logarithms that q makes are to base 2, those of the softmax to base e
        of_to_k.add(batch.keys, torch.bmm(of_scores.mT, asking.mul_(1 / BITS)))
        of_to_q.put(batch.queries, torch.bmm(of_scores, asked).mul_(scale))
    for piece in pieces(to_q):
        add_products(to_q[:, :, piece], of_own[:, :, piece], keys[:, :, piece])
    return to_q, to_k, to_v


@backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(_beside(x, x.shape[3]) for x in (q, k, v))  # type: ignore[return-value]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, own, alone, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.rest = own, alone, scale
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *places, out, sums, shares = ctx.saved_tensors
    found = backward(grad, q, k, v, out, sums, shares, *places, *ctx.rest)
    return *found, *[None] * 7


attend.register_autograd(_backward, setup_context=_keep)


def attend_sorted(q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: Stretches) -> Tensor:
    """softmax(scale q k^T) v over each query's stretch and its own key.

    Args:
        q: [B, H, T, K], fp32 or fp64.
        k, v: [B, G, S, K] and [B, G, S, V]; a group serves H / G consecutive heads.

    Returns:
        [B, H, T, V].
    """
    out: Tensor = attend(q, k, v, *stretches, scale)[0]
    return out
