"""Attention to stretches of keys in the order of clusters, without scores of what never meets.

Queries and keys are sorted by cluster and time. What a query meets is then a stretch of sorted keys whose
ends never go back from one query to the next: a block of queries meets one stretch. Operators that torch
traces whole.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.ops.attend_blocks import QKV, ForwardResult, attend_backward
from flagformer.ops.attend_blocks import attend as attend_part
from flagformer.ops.full_precision import without_casts
from flagformer.ops.key_ranges import KeyRanges
from flagformer.ops.tiling import head_tiles

PLACES = "Tensor by_query, Tensor by_key, Tensor low, Tensor high, int own, bool alone, float scale"


def _beside(like: Tensor, width: int) -> Tensor:
    """[B, H, T, width] such that the heads of a token lie side by side, as what comes next reads them.

    No view of another tensor, so that autograd adds other gradients to it where it lies.
    """
    shape = (*like.shape[:3], width)
    return torch.empty_permuted(shape, (0, 2, 1, 3), dtype=like.dtype, device=like.device)


@torch.library.custom_op(
    "flagformer::attend_sorted",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {PLACES}) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def attend(q: Tensor, k: Tensor, v: Tensor, *places: Any) -> tuple[Tensor, Tensor, Tensor]:
    """`Given` of all queries."""
    *whom, scale = places
    stretches, sums = KeyRanges(*whom), q.new_empty(q.shape[:3])
    found = ForwardResult(_beside(q, v.shape[3]), sums, torch.empty_like(sums))
    for rows, heads, groups in head_tiles(q, k.shape[1]):
        to = ForwardResult(*(x[rows, heads] for x in found))
        part = stretches.of(rows, heads)
        attend_part(q[rows, heads], k[rows, groups], v[rows, groups], part, scale, to)
    return tuple(found)  # type: ignore[return-value]


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
    *whom, scale = places
    stretches, found = KeyRanges(*whom), QKV(*(_beside(x, x.shape[3]) for x in (q, k, v)))
    for rows, heads, groups in head_tiles(q, k.shape[1]):
        given = ForwardResult(*(x[rows, heads] for x in (out, sums, shares)))
        vectors, to = (
            QKV(x.q[rows, heads], x.k[rows, groups], x.v[rows, groups]) for x in (QKV(q, k, v), found)
        )
        attend_backward(grad[rows, heads], vectors, given, stretches.of(rows, heads), scale, to)
    return tuple(found)  # type: ignore[return-value]


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
    with without_casts(grad.device):  # a backward may run under autocast too
        found = backward(grad, q, k, v, out, sums, shares, *places, *ctx.rest)
    return *found, *[None] * 7


attend.register_autograd(_backward, setup_context=_keep)


def attend_sorted(q: Tensor, k: Tensor, v: Tensor, scale: float, stretches: KeyRanges) -> Tensor:
    """softmax(scale q k^T) v over each query's stretch and its own key.

    Args:
        q: [B, H, T, K], fp32 or fp64.
        k, v: [B, G, S, K] and [B, G, S, V]; a group serves H / G consecutive heads.

    Returns:
        [B, H, T, V].
    """
    out: Tensor = attend(q, k, v, *stretches, scale)[0]
    return out
