"""The forms of an `AttentionBias` that kernels take: records of tensors, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import Causal, MaskRule, Padding, Segments, Window


class DenseBias(NamedTuple):
    """Mask and bias as tensors.

    Attributes:
        allowed: [1 or B, 1 or H, 1 or T, P + S] bool, True where a query may attend; None: everywhere.
        bias: [1 or B, H, T, P + S], minus infinity where a query may not attend; None: nothing is added.
        fully_masked_rows: [1 or B, 1 or H, 1 or T, 1] bool, queries without any key; None: there are none.
    """

    allowed: Tensor | None = None
    bias: Tensor | None = None
    fully_masked_rows: Tensor | None = None

    def of_heads(self, heads: slice) -> DenseBias:
        """The same for some of the heads."""
        return DenseBias(*(x if x is None or x.shape[1] == 1 else x[:, heads] for x in self))


def dense_bias(
    allowed: Tensor | None, scores: Tensor | None, num_prefix_kv: int, masks_all: bool
) -> DenseBias:
    """Mask and position scores [1 or B, 1 or H, T, S] after `num_prefix_kv` keys that are always allowed.

    Args:
        masks_all: a query may have no key; prefix keys make sure of one.
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
    """[1 or B, 1 or H, 1 or T, S] bool, the rules together; None: every pair is allowed."""
    q_idx, kv_idx = (torch.arange(one.length, device=q.positions.device)[None, None] for one in (q, kv))
    return allowed_at(rules, q, kv, q_idx[..., None], kv_idx[:, :, None], slice(None))


def allowed_at(
    rules: Sequence[MaskRule], q: Layout, kv: Layout, q_idx: Tensor, kv_idx: Tensor, heads: slice
) -> Tensor | None:
    """The rules together at indices [1 or B, ..., 1 or h, g, 1] and [1 or B, ..., 1 or h, 1, s]."""
    if not rules:
        return None
    dims = q_idx.dim()
    b = torch.arange(max(_rows(q, kv), *(rule.rows for rule in rules)), device=q_idx.device)
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
    """The mask where keys are queries: each query attends to itself only where it has no other key.

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
        """[1 or B, N, 1 or h, g, s] long -> biases [1 or B, N, h, g, s]; beyond the row its ends."""
        row = self.row[heads] if self.row.shape[0] > 1 else self.row
        of_head = torch.arange(row.shape[0], device=row.device).view(1, 1, -1, 1, 1)
        at = of_head * row.shape[1] + self.entries(distances)
        # not `row[of_head, entries]`, whose strides differ between a run and its trace
        return row.flatten().index_select(0, at.flatten()).view(at.shape)

    def entries(self, distances: Tensor) -> Tensor:
        """Distances of any shape -> indices of the row."""
        return (self.origin + self.slope * distances).clamp(0, self.row.shape[1] - 1)


class PositionSource(NamedTuple):
    """The position bias of a forward, from which that of any pair is read; both None: nothing is added.

    Attributes:
        scores: [1 or B, H, T, S], where there is no table.
        learned: whether it had a gradient when it was made.
    """

    table: PositionTable | None = None
    scores: Tensor | None = None
    learned: bool = False

    def at(self, q_idx: Tensor, kv_idx: Tensor, offset: int, heads: slice) -> Tensor | None:
        """At the indices of `AttentionBias.gather` -> [1 or B, N, h, g, s]."""
        if self.table is not None:
            return self.table.at(offset + q_idx - kv_idx, heads)
        return None if self.scores is None else pairs_at(self.scores, q_idx, kv_idx, heads)


class RelativeRange(NamedTuple):
    """The distances of a bias table.

    Attributes:
        offset: position of the first query minus position of the first key.
        nearest: the distance of the table's first entry; nearer keys are masked.
        same_from: entries from this distance on are equal and not masked; -1: unknown.
    """

    offset: int
    nearest: int
    same_from: int = -1


class RelativeBias(NamedTuple):
    """A table of distances in place of a mask and a bias of T * S.

    Attributes:
        biases: [1 or H, L], of the distances range.nearest ... range.nearest + L - 1; pairs at other
            distances are masked.
        groups: [1 or B, S] long or None: tokens of different groups are masked; a padded key of group g has
            -1 - g.
        range: the distances of the table.
    """

    biases: Tensor
    groups: Tensor | None
    range: RelativeRange

    def of_heads(self, heads: slice) -> RelativeBias:
        """The same for some of the heads."""
        return self._replace(biases=self.biases[heads]) if len(self.biases) > 1 else self


class Distances(NamedTuple):
    """Nearest and farthest distance that rules leave, and whether time or a window sets them."""

    nearest: int
    farthest: int
    causal: bool
    window: bool


def distances_of(rules: Sequence[MaskRule], q: Layout, kv: Layout) -> Distances | None:
    """None where distances and groups do not say it all: a prefix, a window around keys that are always
    visible, a mask or positions of the user's own."""
    if not (q.contiguous_positions and kv.contiguous_positions):
        return None
    nearest, farthest = q.start - (kv.end - 1), q.end - 1 - kv.start
    causal = window = False
    for rule in rules:
        if isinstance(rule, Causal):
            nearest, causal = max(nearest, 0), True
        elif isinstance(rule, Window) and kv.always_visible is None:
            nearest = nearest if rule.right is None else max(nearest, -rule.right)
            farthest = farthest if rule.left is None else min(farthest, rule.left)
            window = True
        elif not isinstance(rule, (Padding, Segments)):
            return None
    return Distances(nearest, farthest, causal, window)


def groups_of(rules: Sequence[MaskRule], kv: Layout) -> Tensor | None:
    """`RelativeBias.groups` of these rules."""
    groups = kv.segment_ids if any(isinstance(rule, Segments) for rule in rules) else None
    if kv.valid is None or not any(isinstance(rule, Padding) for rule in rules):
        return groups
    groups = torch.zeros_like(kv.valid, dtype=torch.long) if groups is None else groups
    return torch.where(kv.valid, groups, -1 - groups)


class VarLen(NamedTuple):
    """Sequences without padding, one after the other, as varlen kernels take them.

    Attributes:
        order: [B * T] long, tokens with padding moved to the end; None: in their order.
        cu_seqlens: [N + 1] int32, the starts of the sequences and the end of the last.
        max_len: an upper bound of their lengths, known without asking the device.
        window: keys before and after a query, -1: all; (-1, 0) is causal.
    """

    order: Tensor | None
    cu_seqlens: Tensor
    max_len: int
    window: tuple[int, int]


def varlen_of(rules: Sequence[MaskRule], q: Layout, kv: Layout) -> VarLen | None:
    """None where rows need no packing, or a rule needs whole rows."""
    same = q.start == kv.start and q.length == kv.length
    packed = any(isinstance(rule, (Segments, Padding)) for rule in rules)
    if not (same and packed) or any(
        not isinstance(rule, (Causal, Window, Segments, Padding)) for rule in rules
    ):
        return None
    window = next((rule for rule in rules if isinstance(rule, Window)), None)
    # padding between tokens: dropping it would change distances
    if window is not None and (kv.always_visible is not None or kv.may_have_holes):
        return None
    left, right = (None, None) if window is None else (window.left, window.right)
    right = 0 if any(isinstance(rule, Causal) for rule in rules) else right
    rows = _rows(q, kv)
    valid = torch.ones(rows, kv.length, dtype=torch.long, device=q.positions.device)
    valid = valid if kv.valid is None else kv.valid.long().expand(rows, -1)
    ids = torch.zeros_like(valid) if kv.segment_ids is None else kv.segment_ids
    # one entry more than segments: `Layout.packed` numbers the padding after the last one so
    lengths = valid.new_zeros(rows, kv.num_segments + 1).scatter_add(1, ids, valid)
    cu_seqlens = F.pad(lengths.flatten().cumsum(0), (1, 0)).int()
    order = None if kv.valid is None else torch.argsort(1 - valid.flatten(), stable=True)
    return VarLen(order, cu_seqlens, kv.length, (_unlimited(left), _unlimited(right)))


def _unlimited(side: int | None) -> int:
    return -1 if side is None else side


def _rows(*layouts: Layout) -> int:
    return max(layout.rows for layout in layouts)
