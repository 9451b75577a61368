"""Attention to key ranges, and its gradients, as operators that are opaque to torch's tracing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.attention.kernels.key_ranges.attend import QKV, ForwardResult, attend, attend_backward
from flagformer.attention.kernels.key_ranges.ranges import KeyRanges
from flagformer.ops.full_precision import without_casts
from flagformer.ops.tiling import head_tiles

RANGES = (
    "Tensor by_query, Tensor by_key, Tensor start, Tensor end, int self_offset, bool mask_self_unless_alone, "
    "float scale"
)


def _empty_by_token(like: Tensor, width: int) -> Tensor:
    """An empty [B, H, T, width] stored as [B, T, H, width], the layout that the output projection reads.

    The tensor owns its memory, so that autograd can accumulate other gradients into it in place.
    """
    shape = (*like.shape[:3], width)
    return torch.empty_permuted(shape, (0, 2, 1, 3), dtype=like.dtype, device=like.device)


@torch.library.custom_op(
    "flagformer::attend_sorted",
    mutates_args=(),
    schema=f"(Tensor q, Tensor k, Tensor v, {RANGES}) -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def attend_sorted(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The `ForwardResult` of all queries; `rest`: the fields of `KeyRanges`, and the scale."""
    *fields, scale = rest
    ranges, lse2 = KeyRanges(*fields), q.new_empty(q.shape[:3])
    result = ForwardResult(_empty_by_token(q, v.shape[3]), lse2, torch.empty_like(lse2))
    for rows, heads, groups in head_tiles(q, k.shape[1]):
        to = ForwardResult(*(x[rows, heads] for x in result))
        part = ranges.of(rows, heads)
        attend(q[rows, heads], k[rows, groups], v[rows, groups], part, scale, to)
    return tuple(result)  # type: ignore[return-value]


@attend_sorted.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    lse2 = q.new_empty(q.shape[:3])
    return _empty_by_token(q, v.shape[3]), lse2, torch.empty_like(lse2)


@torch.library.custom_op(
    "flagformer::attend_sorted_backward",
    mutates_args=(),
    schema=(
        "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse2, Tensor self_prob,"
        f" {RANGES}) -> (Tensor, Tensor, Tensor)"
    ),
    device_types="cpu",
)
def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse2: Tensor, self_prob: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    *fields, scale = rest
    ranges, grads = KeyRanges(*fields), QKV(*(_empty_by_token(x, x.shape[3]) for x in (q, k, v)))
    for rows, heads, groups in head_tiles(q, k.shape[1]):
        result = ForwardResult(*(x[rows, heads] for x in (out, lse2, self_prob)))
        inputs, to = (
            QKV(x.q[rows, heads], x.k[rows, groups], x.v[rows, groups]) for x in (QKV(q, k, v), grads)
        )
        attend_backward(grad[rows, heads], inputs, result, ranges.of(rows, heads), scale, to)
    return tuple(grads)  # type: ignore[return-value]


@backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(_empty_by_token(x, x.shape[3]) for x in (q, k, v))  # type: ignore[return-value]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, self_offset, mask_self_unless_alone, scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.rest = self_offset, mask_self_unless_alone, scale
    ctx.mark_non_differentiable(*output[1:])


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, *ranges, out, lse2, self_prob = ctx.saved_tensors
    with without_casts(grad.device):  # a backward may run under autocast too
        grads = backward(grad, q, k, v, out, lse2, self_prob, *ranges, *ctx.rest)
    return *grads, *[None] * 7


attend_sorted.register_autograd(_backward, setup_context=_save)
