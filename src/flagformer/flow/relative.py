"""Mask and position bias as a table by distance, in place of tensors [T, S]."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from flagformer.flow.bias_views import PositionScores
from flagformer.flow.layout import Layout
from flagformer.flow.mask_rules import Causal, Chunks, MaskRule, Padding, Segments, Window
from flagformer.ops.lengths import use_long_path


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
    """Mask and position bias by distance.

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
        """Return the table of some of the heads."""
        return self._replace(biases=self.biases[heads]) if len(self.biases) > 1 else self


def relative_bias(
    rules: Sequence[MaskRule], position_bias: PositionScores | None, q: Layout, kv: Layout, plain_causal: bool
) -> RelativeBias | None:
    """Return the table of all heads; None for short rows and where it is not exact or not faster.

    Args:
        plain_causal: whether the fast path of every kernel applies, which needs no table.
    """
    found = distances_of(rules, q, kv) if use_long_path(q.length) else None
    if found is None:
        return None
    device, same = q.positions.device, None
    if position_bias is None:
        if plain_causal or not (found.causal or found.window):
            return None
        table: Tensor | None = torch.zeros(1, found.farthest - found.nearest + 1, device=device)
    else:
        table = position_bias.relative_table(found.nearest, found.farthest, device)
        same = position_bias.saturation_distance
    if table is None:
        return None
    # within a window, distances beyond it are masked and do not share the bias
    same = -1 if same is None or found.window else max(same, found.nearest)
    distances = RelativeRange(q.start - kv.start, found.nearest, same)
    return RelativeBias(table, groups_of(rules, kv), distances)


class Distances(NamedTuple):
    """Nearest and farthest allowed distance, and whether causality or a window limits them."""

    nearest: int
    farthest: int
    causal: bool
    window: bool


def distances_of(rules: Sequence[MaskRule], q: Layout, kv: Layout) -> Distances | None:
    """Return the allowed distances; None if the rules also depend on other properties of a pair: a prefix,
    keys that are always visible, a user's mask or positions."""
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
        elif isinstance(rule, Chunks) and kv.always_visible is None:
            farthest, window = min(farthest, rule.size - 1), True
            nearest = max(nearest, 1 - rule.size)
        elif not isinstance(rule, (Padding, Segments)):
            return None
    return Distances(nearest, farthest, causal, window)


def groups_of(rules: Sequence[MaskRule], kv: Layout) -> Tensor | None:
    """Return `RelativeBias.groups` for these rules."""
    groups = kv.segment_ids if any(isinstance(rule, Segments) for rule in rules) else None
    for rule in rules:
        if isinstance(rule, Chunks):
            groups = chunks_in(groups, rule, kv)
    if kv.valid is None or not any(isinstance(rule, Padding) for rule in rules):
        return groups
    groups = torch.zeros_like(kv.valid, dtype=torch.long) if groups is None else groups
    return torch.where(kv.valid, groups, -1 - groups)


def chunks_in(segment_ids: Tensor | None, rule: Chunks, kv: Layout) -> Tensor:
    """[1 or B, S] long, one number for each chunk of each segment, in the order of the keys."""
    chunks = rule.of_keys(kv)
    return chunks if segment_ids is None else segment_ids * rule.count(kv) + chunks
