"""Attention with a relative bias, and its gradients, as operators that are opaque to torch's tracing."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any

import torch
from torch import Tensor

from flagformer.ops.bias_table import PAD, BiasTable, RelativeRange, Tile, by_heads, head_groups
from flagformer.ops.full_precision import accum_dtype, without_casts
from flagformer.ops.tried import private

fused = private("_scaled_dot_product_flash_attention_for_cpu")
fused_backward = private("_scaled_dot_product_flash_attention_for_cpu_backward")


def dense_rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension, as the fused kernel requires."""
    return x if x.stride(-1) == 1 else x.contiguous()


INPUTS = "Tensor q, Tensor k, Tensor v, Tensor biases, Tensor? groups, int[] span, float scale"
SAVED = "Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse"
GRADIENTS = f"({SAVED}, Tensor biases, Tensor? groups, int[] span, float scale)"


@torch.library.custom_op(
    "flagformer::by_distance", mutates_args=(), schema=f"({INPUTS}) -> (Tensor, Tensor)", device_types="cpu"
)
def attend(
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


@attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, biases: Tensor, groups: Tensor | None, span: Any, scale: float
) -> tuple[Tensor, Tensor]:
    return by_heads(q, q.shape[3], q.dtype), by_heads(q, 1, accum_dtype(q.dtype))[..., 0]


class _Gradients:
    """The inputs and gradients of a backward; keys, values and their gradients are reversed in time."""

    def __init__(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
        self.grad, self.q, self.out, self.lse = dense_rows(grad), dense_rows(q), out, lse
        self.k, self.v, self.keys = k.flip(2), v.flip(2), k.shape[2]
        dtype, width = accum_dtype(q.dtype), q.shape[3]
        self.dq, self.dk, self.dv = (by_heads(like, width, dtype) for like in (q, k, v))

    def of(self, heads: slice) -> _Gradients:
        """A view of some heads."""
        view = copy(self)
        for name in ("grad", "q", "out", "lse", "k", "v", "dq", "dk", "dv"):
            setattr(view, name, getattr(self, name)[:, heads])
        return view

    def add_fused(
        self, tile: Tile, part: slice, mask: Tensor | None, scale: float, bias: Tensor | None = None
    ) -> None:
        """Add the gradients of a tile's queries and the keys `part`; `bias` [H] is subtracted from `lse`."""
        rows = slice(tile.start, tile.stop)
        lse = self.lse[:, :, rows]
        dq, dk, dv = fused_backward(
            self.grad[:, :, rows],
            self.q[:, :, rows],
            self.k[:, :, part],
            self.v[:, :, part],
            self.out[:, :, rows],
            lse if bias is None else lse - bias[:, None],
            0.0,
            False,
            attn_mask=mask,
            scale=scale,
        )
        self.dq[:, :, rows] += dq
        self.dk[:, :, part] += dk
        self.dv[:, :, part] += dv

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.q.dtype
        return self.dq.to(dtype), self.dk.flip(2).to(dtype), self.dv.flip(2).to(dtype)


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
    grads = _Gradients(grad, q, k, v, out, lse)
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

    Keys that share one bias (`same_from`) go through the fused kernel, which gives no gradient of a bias.
    The gradients of a query's scores sum to zero, so the gradient of the shared bias is minus the sum of the
    others.
    """
    grads = _Gradients(grad, q, k, v, out, lse)
    delta = (out.to(lse.dtype) * grad).sum(dim=-1, keepdim=True)
    dbiases = torch.zeros_like(biases, dtype=lse.dtype)
    for heads, table, distances in head_groups(q, k, biases, groups, RelativeRange(*span), scale):
        of_group, sums = grads.of(heads), torch.zeros_like(table.biases)
        for tile in table.tiles(q.shape[2], grads.keys):
            _add_learned(of_group, sums, tile, table, delta[:, heads], scale)
        dbiases[heads, distances] = sums[:, PAD : PAD + table.length]
    return *grads.result(), dbiases.to(biases.dtype)


def _add_learned(
    grads: _Gradients, dbiases: Tensor, tile: Tile, table: BiasTable, delta: Tensor, scale: float
) -> None:
    """Add the gradients of a tile to `grads`, those of the table to `dbiases`."""
    sums = _add_eager(grads, tile, table, delta, scale)
    begin = table.index(tile)
    dbiases[:, begin : begin + sums.shape[1]] += sums
    if tile.saturated > tile.first:
        at = table.saturated_index + PAD
        dbiases[:, at] -= sums.sum(dim=1)
        part = tile.saturated_keys(grads.keys)
        # the fused kernel adds no bias here: it is subtracted from the log-sum-exp instead
        grads.add_fused(tile, part, table.saturated_mask(tile, part), scale, table.biases[:, at])


@learned_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, biases: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, dk, dv = (by_heads(like, like.shape[3], like.dtype) for like in (q, k, v))
    return dq, dk, dv, torch.empty_like(biases)


def _add_eager(grads: _Gradients, tile: Tile, table: BiasTable, delta: Tensor, scale: float) -> Tensor:
    """Add the gradients of a tile's near keys; return those of the biases, [H, queries + near keys - 1]."""
    part, rows = tile.near_keys(grads.keys), slice(tile.start, tile.stop)
    q, k, v, grad = (
        grads.q[:, :, rows] * scale,
        grads.k[:, :, part],
        grads.v[:, :, part],
        grads.grad[:, :, rows],
    )
    weights = (q @ k.mT).to(delta.dtype).add_(table.mask(tile, part))
    weights = weights.sub_(grads.lse[:, :, rows, None]).exp_()
    batch, heads, queries, keys = weights.shape
    # The row stride is chosen so that the same memory, read with rows one shorter, has one distance a column.
    width = queries + keys - 1
    padded = weights.new_empty(batch, heads, queries, width)
    padded[..., keys:] = 0.0
    dscores = torch.sub(grad @ v.mT, delta[:, :, rows], out=padded[..., :keys]).mul_(weights)
    columns = padded.as_strided(padded.shape, (heads * queries * width, queries * width, width - 1, 1))
    dtype = q.dtype
    low = dscores.to(dtype)
    grads.dv[:, :, part] += weights.to(dtype).mT @ grad
    grads.dk[:, :, part] += low.mT @ q
    grads.dq[:, :, rows] += (low @ k).mul_(scale)
    return columns.sum(dim=(0, 2))


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


attend.register_autograd(_backward, setup_context=_save)
