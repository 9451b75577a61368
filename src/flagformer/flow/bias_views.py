"""Mask and position bias as tensors: of all pairs, and of the pairs that block-sparse cores compute."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import MaskRule


class PositionScores(Protocol):
    """The methods of a `flagformer.position.PositionBias` that are called here."""

    saturation_distance: int | None

    def between(self, queries: Layout, keys: Layout) -> Tensor | None: ...

    def relative_table(self, nearest: int, farthest: int, device: torch.device) -> Tensor | None: ...


class DenseBias(NamedTuple):
    """Mask and bias as tensors.

    Attributes:
        allowed: [1 or B, 1 or H, 1 or T, P + S] bool, True where a query may attend; None: all pairs.
        bias: [1 or B, H, T, P + S], minus infinity where a query may not attend; None: no bias.
        fully_masked_rows: [1 or B, 1 or H, 1 or T, 1] bool, queries without keys; None: there are none.
    """

    allowed: Tensor | None = None
    bias: Tensor | None = None
    fully_masked_rows: Tensor | None = None

    def of_heads(self, heads: slice) -> DenseBias:
        """Return the tensors of some of the heads."""
        return DenseBias(*(x if x is None or x.shape[1] == 1 else x[:, heads] for x in self))


def dense_bias(
    allowed: Tensor | None, scores: Tensor | None, num_prefix_kv: int, masks_all: bool
) -> DenseBias:
    """Combine a mask and position scores [1 or B, 1 or H, T, S] after `num_prefix_kv` allowed keys.

    Args:
        masks_all: whether the mask may leave a query without keys, if there are no prefix keys.
    """
    rows = None
    if allowed is not None:
        rows = ~allowed.any(dim=-1, keepdim=True) if masks_all and not num_prefix_kv else None
        allowed = F.pad(allowed, (num_prefix_kv, 0), value=True) if num_prefix_kv else allowed
    if scores is not None:
        scores = F.pad(scores, (num_prefix_kv, 0)) if num_prefix_kv else scores
        scores = scores if allowed is None else scores.masked_fill(~allowed, float("-inf"))
    return DenseBias(allowed, scores, rows)


def allowed_pairs(rules: Sequence[MaskRule], q: Layout, kv: Layout) -> Tensor | None:
    """Return [1 or B, 1 or H, 1 or T, S] bool, True if all rules allow a pair; None: all pairs."""
    if not rules:
        return None
    q_idx, kv_idx = (torch.arange(one.length, device=q.positions.device) for one in (q, kv))
    rows = max(max_rows(q, kv), *(max(rule.rows, rule.heads) for rule in rules))
    if isinstance(rows, int) and rows == 1:  # a number of an exported program is no int: it may be any
        zero = q_idx.new_zeros(1, 1)  # an index without dimensions would be read as a number
        parts = [rule.mask_mod(q, kv)(zero, zero, q_idx[:, None], kv_idx) for rule in rules]
        allowed = reduce(Tensor.logical_and, parts)  # [S] or [T, S]
        return allowed[(None,) * (4 - allowed.dim())]
    return allowed_at(rules, q, kv, q_idx[None, None, :, None], kv_idx[None, None, None], slice(None))


def allowed_at(
    rules: Sequence[MaskRule], q: Layout, kv: Layout, q_idx: Tensor, kv_idx: Tensor, heads: slice
) -> Tensor | None:
    """Evaluate all rules at indices [1 or B, ..., 1 or h, g, 1] and [1 or B, ..., 1 or h, 1, s]."""
    if not rules:
        return None
    dims = q_idx.dim()
    b = torch.arange(max(max_rows(q, kv), *(rule.rows for rule in rules)), device=q_idx.device)
    h = torch.arange(max(1, *(rule.heads for rule in rules)), device=q_idx.device)
    h = h[heads] if len(h) > 1 else h
    b, h = b.view(-1, *[1] * (dims - 1)), h.view(-1, 1, 1)
    parts = [rule.mask_mod(q, kv)(b, h, q_idx, kv_idx) for rule in rules]
    return reduce(Tensor.logical_and, [part[(None,) * (dims - part.dim())] for part in parts])


def pairs_at(x: Tensor, q_idx: Tensor, kv_idx: Tensor, heads: slice) -> Tensor:
    """x [1 or B, 1 or H, T, S] at the indices of `AttentionBias.gather` -> [1 or B, N, 1 or h, g, s]."""
    x = x[:, heads] if x.shape[1] > 1 else x
    b = torch.arange(x.shape[0], device=x.device).view(-1, 1, 1, 1, 1)
    h = torch.arange(x.shape[1], device=x.device).view(-1, 1, 1)
    return x[b, h, q_idx, kv_idx]


def without_self(allowed: Tensor | None, own: Tensor, num_prefix_kv: int) -> Tensor:
    """Return the mask of shared QK: a query attends to itself only if it has no other key.

    Args:
        own: bool, broadcasts to `allowed`, True for the key of each query.
    """
    allowed = torch.ones_like(own) if allowed is None else allowed
    others = allowed & ~own
    return others if num_prefix_kv else others | (allowed & own & ~others.any(dim=-1, keepdim=True))


class PositionTable(NamedTuple):
    """Position biases by distance: distance d has entry `origin + slope * d` of each head's row.

    Attributes:
        row: [1 or H, L].
    """

    row: Tensor
    origin: int
    slope: int = 1

    def at(self, distances: Tensor, heads: slice) -> Tensor:
        """Distances [1 or B, N, 1 or h, g, s], clamped to the row -> biases [1 or B, N, h, g, s]."""
        row = self.row[heads] if self.row.shape[0] > 1 else self.row
        of_head = torch.arange(row.shape[0], device=row.device).view(1, 1, -1, 1, 1)
        at = of_head * row.shape[1] + self.entries(distances)
        # not `row[of_head, entries]`, whose strides differ between a run and its trace
        return row.flatten().index_select(0, at.flatten()).view(at.shape)

    def entries(self, distances: Tensor) -> Tensor:
        """Distances of any shape -> indices of the row."""
        return (self.origin + self.slope * distances).clamp(0, self.row.shape[1] - 1)


class PositionSource(NamedTuple):
    """The position bias of a forward, read by pairs; no bias if both tensors are None.

    Attributes:
        scores: [1 or B, H, T, S], if there is no table.
        learned: whether it required a gradient when it was computed.
    """

    table: PositionTable | None = None
    scores: Tensor | None = None
    learned: bool = False

    def at(self, q_idx: Tensor, kv_idx: Tensor, offset: int, heads: slice) -> Tensor | None:
        """Return the bias [1 or B, N, h, g, s] at the indices of `AttentionBias.gather`."""
        if self.table is not None:
            return self.table.at(offset + q_idx - kv_idx, heads)
        return None if self.scores is None else pairs_at(self.scores, q_idx, kv_idx, heads)


def max_rows(*layouts: Layout) -> int:
    """The batch size that the layouts broadcast to."""
    return max(layout.rows for layout in layouts)
