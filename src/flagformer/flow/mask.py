"""Which pairs may meet: a value made of rules, composed by `&`.

A kernel takes the rules it knows by name (`Causal`) and asks for all of them as one tensor otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.qk_indices import QKIndices


class MaskRule(ABC):
    """One reason why a query and a key may meet."""

    may_mask_all = True  # may leave a query without any key

    @abstractmethod
    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        """[1 or B, 1 or H, 1 or T, S] bool, True where they may meet."""

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor:
        """[1 or B, N, 1 or h, g, s] bool, the same for few pairs; best said without all the others."""
        return spots.of_pairs(self.dense(queries, keys))


@dataclass(frozen=True)
class Causal(MaskRule):
    """No query sees a later key."""

    may_mask_all = False

    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        return (keys.cache_positions() <= queries.cache_positions()[:, None])[None, None]

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor:
        return keys.start + spots.kv_idx <= queries.start + spots.q_idx


@dataclass(frozen=True)
class Window(MaskRule):
    """A query sees the last `width` keys, itself included; and all that last, which do not count."""

    width: int
    may_mask_all = False

    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        if keys.always_visible is not None:
            first = queries.start - keys.start
            counts = (~keys.always_visible).cumsum(dim=1)  # [1 or B, S]
            newest = counts[:, first : first + queries.length, None]
            return ((counts[:, None] > newest - self.width) | keys.always_visible[:, None])[:, None]
        return (keys.cache_positions() > queries.cache_positions()[:, None] - self.width)[None, None]

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor:
        if keys.always_visible is not None:
            first = queries.start - keys.start
            counts = (~keys.always_visible).cumsum(dim=1)
            newest = spots.of_rows(counts[:, first : first + queries.length], spots.q_idx)
            inside = spots.of_rows(counts, spots.kv_idx) > newest - self.width
            return inside | spots.of_rows(keys.always_visible, spots.kv_idx)
        return keys.start + spots.kv_idx > queries.start + spots.q_idx - self.width


def narrowest(one: int | None, other: int | None) -> int | None:
    """The smaller of two windows; None where neither limits anything."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


@dataclass(frozen=True)
class Prefix(MaskRule):
    """Causal, but every query sees the first `length` real keys of its sequence ([B] or [1] long)."""

    length: Tensor
    may_mask_all = False

    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        # by position, as padding in front and packing shift places; positions of a user's own say nothing
        numbers = keys.positions if keys.contiguous_positions else keys.cache_positions()[None]
        inside = numbers < self.length[:, None]  # [B, S]
        return Causal().dense(queries, keys) | inside[:, None, None]

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor:
        numbers = keys.positions if keys.contiguous_positions else keys.cache_positions()[None]
        inside = spots.of_rows(numbers, spots.kv_idx) < self.length.view(-1, 1, 1, 1, 1)
        return Causal().gather(queries, keys, spots) | inside


@dataclass(frozen=True)
class Padding(MaskRule):
    """Only real keys are seen."""

    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        assert keys.valid is not None
        return keys.valid[:, None, None]

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor:
        assert keys.valid is not None
        return spots.of_rows(keys.valid, spots.kv_idx)


@dataclass(frozen=True)
class Segments(MaskRule):
    """Only tokens of one segment meet."""

    may_mask_all = False

    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        assert queries.segment_ids is not None
        assert keys.segment_ids is not None
        return (queries.segment_ids[:, :, None] == keys.segment_ids[:, None])[:, None]

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor:
        assert queries.segment_ids is not None
        assert keys.segment_ids is not None
        return spots.of_rows(queries.segment_ids, spots.q_idx) == spots.of_rows(
            keys.segment_ids, spots.kv_idx
        )


@dataclass(frozen=True)
class DenseMask(MaskRule):
    """The user's own mask, [1 or B, 1 or H, T, S] bool, whose keys begin at place `start`."""

    mask: Tensor
    start: int = 0

    def dense(self, queries: Layout, keys: Layout) -> Tensor:
        return self.mask[..., keys.start - self.start :]


@dataclass(frozen=True)
class Mask:
    """Rules that all must hold; no rule means that every pair meets."""

    rules: tuple[MaskRule, ...] = ()

    def __and__(self, rule: MaskRule) -> Mask:
        return Mask((*self.rules, rule))

    @property
    def may_mask_all(self) -> bool:
        return any(rule.may_mask_all for rule in self.rules)

    @property
    def is_plain_causal(self) -> bool:
        return len(self.rules) == 1 and isinstance(self.rules[0], Causal)

    def dense(self, queries: Layout, keys: Layout) -> Tensor | None:
        """[1 or B, 1 or H, 1 or T, S] bool, True where a pair may meet; None when all do."""
        if not self.rules:
            return None
        return reduce(Tensor.logical_and, (rule.dense(queries, keys) for rule in self.rules))

    def gather(self, queries: Layout, keys: Layout, spots: QKIndices) -> Tensor | None:
        """[1 or B, N, 1 or h, g, s] bool, the same for few pairs; None when all may meet."""
        if not self.rules:
            return None
        return reduce(Tensor.logical_and, (rule.gather(queries, keys, spots) for rule in self.rules))
