"""Gradients of attention with a relative bias, tile by tile."""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from flagformer.attention.kernels.relative_bias.capability import fused_backward
from flagformer.attention.kernels.relative_bias.table import PAD, BiasTable, Tile, by_heads
from flagformer.ops.full_precision import accum_dtype


def dense_rows(x: Tensor) -> Tensor:
    """x with a contiguous last dimension, as the fused kernel requires."""
    return x if x.stride(-1) == 1 else x.contiguous()


class Gradients:
    """The inputs and gradients of a backward; keys, values and their gradients are reversed in time."""

    def __init__(self, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
        self.grad, self.q, self.out, self.lse = dense_rows(grad), dense_rows(q), out, lse
        self.k, self.v, self.keys = k.flip(2), v.flip(2), k.shape[2]
        dtype, width = accum_dtype(q.dtype), q.shape[3]
        self.dq, self.dk, self.dv = (by_heads(like, width, dtype) for like in (q, k, v))

    def of(self, heads: slice) -> Gradients:
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


def add_learned(
    grads: Gradients, dbiases: Tensor, tile: Tile, table: BiasTable, delta: Tensor, scale: float
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


def _add_eager(grads: Gradients, tile: Tile, table: BiasTable, delta: Tensor, scale: float) -> Tensor:
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
