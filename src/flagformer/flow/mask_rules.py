"""Mask rules: functions of query and key indices that return whether attention is allowed.

The function is a `mask_mod` of FlexAttention, `(b, h, q_idx, kv_idx) -> bool`. It takes scalars under `vmap`
(FlexAttention), ranges that broadcast to [B, H, T, S] (dense masks) and indices of blocks (block-sparse
attention). Index 0 is the first query or key of the forward.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.ops.lengths import hides

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def lookup(x: Tensor, b: Tensor, idx: Tensor) -> Tensor:
    """x [1 or B, T] at rows `b` and columns `idx`."""
    return x[0][idx] if x.shape[0] == 1 else x[b, idx]


class MaskRule(ABC):
    """A condition on pairs of queries and keys; a pair is allowed if all rules allow it."""

    may_mask_all = True  # whether a query may have no key
    rows = 1  # B if the rule depends on the row of the batch
    heads = 1  # H if it depends on the head

    @abstractmethod
    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        """Return the function for these layouts, True where a query may attend to a key."""

    def implied(self, q: Layout, kv: Layout) -> bool:
        """Whether it allows every pair of these layouts, so that it can be dropped."""
        return False


@dataclass(frozen=True)
class Causal(MaskRule):
    """Allows keys up to the position of the query."""

    may_mask_all = False

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        offset = q.start - kv.start
        return lambda b, h, q_idx, kv_idx: kv_idx <= q_idx + offset

    def implied(self, q: Layout, kv: Layout) -> bool:
        return q.length == 1 and q.end == kv.end


@dataclass(frozen=True)
class Window(MaskRule):
    """Allows at most `left` keys before the query and `right` after it; None: no limit on that side.

    Keys that are always visible are neither counted nor masked.
    """

    left: int | None = None
    right: int | None = None
    may_mask_all = False

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        offset = q.start - kv.start
        if kv.always_visible is None:
            return lambda b, h, q_idx, kv_idx: self._inside(q_idx + offset, kv_idx)
        counts, always = (~kv.always_visible).cumsum(dim=1), kv.always_visible

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            inside = self._inside(lookup(counts, b, q_idx + offset), lookup(counts, b, kv_idx))
            return inside | lookup(always, b, kv_idx)

        return mod

    def _inside(self, query: Tensor, key: Tensor) -> Tensor:
        # comparisons only: a difference would be T * S integers
        before = None if self.left is None else key >= query - self.left
        after = None if self.right is None else key <= query + self.right
        if before is None or after is None:
            found = after if before is None else before
            assert found is not None
            return found
        return before & after

    def implied(self, q: Layout, kv: Layout) -> bool:
        # after a single query at the end there are no keys
        right = None if q.length == 1 and q.end == kv.end else self.right
        return not any(side is not None and hides(side + 1, kv.length) for side in (self.left, right))


@dataclass(frozen=True)
class Chunks(MaskRule):
    """Keys of the query's own chunk of `size` positions only, the first chunk at a sequence's first token.

    Keys that are always visible are neither counted nor masked. Chunks are cut by position: padding in
    front, packing and XL memories move none. Positions that the user gave do not count.
    """

    size: int
    may_mask_all = False

    def of_keys(self, kv: Layout) -> Tensor:
        """[1 or B, S] long, the chunk of each key, from 1; 0 for padding."""
        if kv.always_visible is not None:
            numbers = _numbers_of_counted(kv, ~kv.always_visible)
        else:
            numbers = kv.positions if kv.contiguous_positions else kv.cache_positions()[None]
        chunks = numbers.clamp(min=0) // self.size + 1
        return chunks if kv.valid is None else torch.where(kv.valid, chunks, 0)

    def count(self, kv: Layout) -> int:
        """More than the chunk of any key."""
        return (kv.end - 1) // self.size + 2

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        chunks, offset, always = self.of_keys(kv), q.start - kv.start, kv.always_visible

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            same = lookup(chunks, b, q_idx + offset) == lookup(chunks, b, kv_idx)
            return same if always is None else same | lookup(always, b, kv_idx)

        return mod

    def implied(self, q: Layout, kv: Layout) -> bool:
        return not hides(self.size, kv.end)


def _numbers_of_counted(kv: Layout, counted: Tensor) -> Tensor:
    """[B, S] long, how many valid tokens of those `counted` precede each in its segment, itself left out."""
    counted = (counted if kv.valid is None else counted & kv.valid).long()
    numbers = counted.cumsum(dim=1) - 1
    if kv.segment_ids is None:
        return numbers
    ids, counted = kv.segment_ids, counted.expand_as(kv.segment_ids)
    # one entry more than segments: `Layout.packed` numbers the padding after the last one so
    lengths = counted.new_zeros(ids.shape[0], kv.num_segments + 1).scatter_add(1, ids, counted)
    return numbers - (lengths.cumsum(dim=1) - lengths).gather(1, ids)


def narrowest(one: int | None, other: int | None) -> int | None:
    """Return the smaller of two window widths; None: no limit."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


@dataclass(frozen=True)
class Padding(MaskRule):
    """Allows valid keys."""

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        valid = kv.valid
        assert valid is not None
        return lambda b, h, q_idx, kv_idx: lookup(valid, b, kv_idx)

    def implied(self, q: Layout, kv: Layout) -> bool:
        return kv.valid is None


@dataclass(frozen=True)
class Segments(MaskRule):
    """Allows keys of the query's segment."""

    may_mask_all = False

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        of_q, of_kv = q.segment_ids, kv.segment_ids
        assert of_q is not None
        assert of_kv is not None
        return lambda b, h, q_idx, kv_idx: lookup(of_q, b, q_idx) == lookup(of_kv, b, kv_idx)

    def implied(self, q: Layout, kv: Layout) -> bool:
        return kv.segment_ids is None


@dataclass(frozen=True, eq=False)  # eq=False: comparing two of them would compare tensors
class PrefixLM(MaskRule):
    """Causal, and every query may attend to the first `length` valid keys of its sequence.

    Attributes:
        length: [B] or [1] long.
    """

    length: Tensor
    may_mask_all = False

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.length.shape[0]

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        # in positions of the sequence, as left padding and packing shift cache positions
        numbers = kv.positions if kv.contiguous_positions else kv.cache_positions()[None]
        causal, length = Causal().mask_mod(q, kv), self.length[:, None]

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            inside = lookup(numbers, b, kv_idx) < lookup(length, b, torch.zeros_like(kv_idx))
            return causal(b, h, q_idx, kv_idx) | inside

        return mod


@dataclass(frozen=True, eq=False)
class DenseMask(MaskRule):
    """A user's mask, [1 or B, 1 or H, T, S] bool, whose keys begin at cache position `start`."""

    mask: Tensor
    start: int = 0

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.mask.shape[0]

    @property
    def heads(self) -> int:  # type: ignore[override]
        return self.mask.shape[1]

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        mask, offset = self.mask, kv.start - self.start

        def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            row = b if mask.shape[0] > 1 else torch.zeros_like(b)
            head = h if mask.shape[1] > 1 else torch.zeros_like(h)
            return mask[row, head, q_idx, kv_idx + offset]

        return mod


@dataclass(frozen=True, eq=False)
class UserMaskMod(MaskRule):
    """A user's function of cache positions, which are the same in a forward and in decoding.

    Attributes:
        mod: `(b, h, q_idx, kv_idx) -> bool`, for indices of any shapes that broadcast.
        batch, num_heads: B and H of the forward, as the function may depend on row and head.
        start: cache position that counts as 0; XL memories before it have negative indices.
    """

    mod: MaskMod
    batch: int
    num_heads: int
    start: int = 0

    @property
    def rows(self) -> int:  # type: ignore[override]
        return self.batch

    @property
    def heads(self) -> int:  # type: ignore[override]
        return self.num_heads

    def mask_mod(self, q: Layout, kv: Layout) -> MaskMod:
        of_q, of_kv = q.start - self.start, kv.start - self.start
        return lambda b, h, q_idx, kv_idx: _checked(self.mod, b, h, q_idx + of_q, kv_idx + of_kv)


def _checked(mod: MaskMod, *indices: Tensor) -> Tensor:
    """Evaluate a user's function; raise ValueError if it does not return booleans."""
    found = mod(*indices)
    if not isinstance(found, Tensor) or found.dtype != torch.bool:
        kind = found.dtype if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(
            "`attn_mask`, a function `(b, h, q_idx, kv_idx)`, must return a boolean tensor (True: may "
            f"attend), but returns {kind}: compare the indices, as `q_idx - kv_idx < 8`"
        )
    return found
