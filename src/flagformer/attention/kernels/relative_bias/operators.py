"""Attention with a relative bias, and its gradients, as operators that are opaque to torch's tracing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flagformer.attention.kernels.relative_bias.capability import fused
from flagformer.attention.kernels.relative_bias.gradients import Gradients, add_learned, dense_rows
from flagformer.attention.kernels.relative_bias.table import PAD, by_heads, head_groups
from flagformer.flow import RelativeRange
from flagformer.ops.full_precision import accum_dtype, without_casts

INPUTS = "Tensor q, Tensor k, Tensor v, Tensor biases, Tensor? groups, int[] span, float scale"
SAVED = "Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse"
GRADIENTS = f"({SAVED}, Tensor biases, Tensor? groups, int[] span, float scale)"


@torch.library.custom_op(
    "flagformer::by_distance", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)", device_types="cpu"
)
def by_distance(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    biases: Tensor,
    groups: Tensor | None,
    span: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor]:
    """softmax(scale q k^T + bias of the distance) v.

    Args:
        q: [B, H, T, K].
        k, v: [B, H, S, K].
        biases: [1 or H, L], for the distances span.nearest ... span.nearest + L - 1; minus infinity: masked.
        groups: [B, S] long or None, see `BiasTable`.
        span: a `RelativeRange`.

    Returns:
        [B, H, T, K], and the log-sum-exp of each query's scores [B, H, T].
    """
    keys = k.shape[2]
    q, reversed_k, reversed_v = dense_rows(q), k.flip(2), v.flip(2)
    out = by_heads(q, q.shape[3], q.dtype)
    lse = by_heads(q, 1, accum_dtype(q.dtype))[..., 0]
    for heads, table, _ in head_groups(q, k, biases, groups, RelativeRange(*span), scale):
        for tile in table.tiles(q.shape[2], keys):
            part, rows = tile.keys(keys), slice(tile.start, tile.stop)
            out[:, heads, rows], lse[:, heads, rows] = fused(
                q[:, heads, rows],
                reversed_k[:, heads, part],
                reversed_v[:, heads, part],
                attn_mask=table.mask(tile, part),
                scale=scale,
            )
    return out, lse


@by_distance.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor, groups: Tensor | None, span: Any, scale: float
) -> tuple[Tensor, Tensor]:
    return by_heads(q, q.shape[3], q.dtype), by_heads(q, 1, accum_dtype(q.dtype))[..., 0]


@torch.library.custom_op(
    "flagformer::by_distance_fixed_backward",
    mutates_args=(),
    schema=f"{GRADIENTS} -> (Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def fixed_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    biases: Tensor,
    groups: Tensor | None,
    span: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v."""
    grads = Gradients(grad, q, k, v, out, lse)
    for heads, table, _ in head_groups(q, k, biases, groups, RelativeRange(*span), scale):
        of_group = grads.of(heads)
        for tile in table.tiles(q.shape[2], grads.keys):
            part = tile.keys(grads.keys)
            of_group.add_fused(tile, part, table.mask(tile, part), scale)
    return grads.result()


@fixed_backward.register_fake
def _(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(by_heads(like, like.shape[3], like.dtype) for like in (q, k, v))  # type: ignore[return-value]


@torch.library.custom_op(
    "flagformer::by_distance_learned_backward",
    mutates_args=(),
    schema=f"{GRADIENTS} -> (Tensor, Tensor, Tensor, Tensor)",
    device_types="cpu",
)
def learned_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    biases: Tensor,
    groups: Tensor | None,
    span: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the biases.

    Keys that share one bias (`same_from`) use the fused kernel, which computes no gradient of a bias.
    The gradients of a query's scores sum to zero, so the gradient of the shared bias is minus the sum of the
    others.
    """
    grads = Gradients(grad, q, k, v, out, lse)
    delta = (out.to(lse.dtype) * grad).sum(dim=-1, keepdim=True)
    dbiases = torch.zeros_like(biases, dtype=lse.dtype)
    for heads, table, distances in head_groups(q, k, biases, groups, RelativeRange(*span), scale):
        of_group, sums = grads.of(heads), torch.zeros_like(table.biases)
        for tile in table.tiles(q.shape[2], grads.keys):
            add_learned(of_group, sums, tile, table, delta[:, heads], scale)
        dbiases[heads, distances] = sums[:, PAD : PAD + table.length]
    return *grads.result(), dbiases.to(biases.dtype)


@learned_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, biases: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (by_heads(like, like.shape[3], like.dtype) for like in (q, k, v))
    return dq, dk, dv, torch.empty_like(biases)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, groups, span, scale = inputs
    ctx.save_for_backward(*tensors, groups, *output)
    ctx.span, ctx.scale = span, scale
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, biases, groups, out, lse = ctx.saved_tensors
    learned = ctx.needs_input_grad[3]
    backward = learned_backward if learned else fixed_backward
    with without_casts(grad.device):  # a backward may run under autocast too
        grads = backward(grad, q, k, v, out, lse, biases, groups, ctx.span, ctx.scale)
    return (*grads, *[None] * (7 - len(grads)))


by_distance.register_autograd(_backward, setup_context=_save)
