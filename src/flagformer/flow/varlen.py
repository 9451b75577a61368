"""Inputs of varlen kernels: concatenated sequences without padding."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow.bias_views import max_rows
from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import Causal, Chunks, MaskRule, Padding, Segments, Window, narrowest
from flagformer.flow.relative import chunks_in


class VarLen(NamedTuple):
    """Concatenated sequences without padding, in the form of varlen kernels.

    Attributes:
        order: [B * T] long, token indices with padding moved to the end; None: unchanged.
        cu_seqlens: [N + 1] int32, the starts of the sequences and the end of the last.
        max_len: an upper bound of their lengths, without a device synchronisation.
        window: keys before and after a query, -1: all; (-1, 0) is causal.
    """

    order: Tensor | None
    cu_seqlens: Tensor
    max_len: int
    window: tuple[int, int]


def varlen_of(rules: Sequence[MaskRule], q: Layout, kv: Layout) -> VarLen | None:
    """Return the varlen form; None if rows have no padding or a rule does not support it."""
    same = q.start == kv.start and q.length == kv.length
    packed = any(isinstance(rule, (Segments, Padding)) for rule in rules)
    if not (same and packed) or any(
        not isinstance(rule, (Causal, Window, Chunks, Segments, Padding)) for rule in rules
    ):
        return None
    windows = [rule for rule in rules if isinstance(rule, Window)]
    chunks = [rule for rule in rules if isinstance(rule, Chunks)]
    # padding between tokens: dropping it would change distances
    if windows and kv.may_have_holes:
        return None
    if (windows or chunks) and kv.always_visible is not None:
        return None
    left = reduce(narrowest, (window.left for window in windows), None)
    right = reduce(narrowest, (window.right for window in windows), None)
    right = 0 if any(isinstance(rule, Causal) for rule in rules) else right
    rows = max_rows(q, kv)
    valid = torch.ones(rows, kv.length, dtype=torch.long, device=q.positions.device)
    valid = valid if kv.valid is None else kv.valid.long().expand(rows, -1)
    ids = torch.zeros_like(valid) if kv.segment_ids is None else kv.segment_ids
    # one more entry than segments, for the padding after the last one (see `Layout.packed`)
    count = kv.num_segments + 1
    for rule in chunks:
        ids, count = chunks_in(ids, rule, kv).expand(rows, -1), count * rule.count(kv)
    lengths = valid.new_zeros(rows, count).scatter_add(1, ids, valid)
    cu_seqlens = F.pad(lengths.flatten().cumsum(0), (1, 0)).int()
    order = None if kv.valid is None else torch.argsort(1 - valid.flatten(), stable=True)
    return VarLen(order, cu_seqlens, kv.length, (_unlimited(left), _unlimited(right)))


def _unlimited(side: int | None) -> int:
    return -1 if side is None else side
