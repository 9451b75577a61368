"""Which pairs may meet: a value made of rules, composed by `&`.

A kernel takes the rules it knows by name (`Causal`) and asks for all of them as one tensor otherwise.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import reduce

from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.spots import Spots


class Rule(ABC):
    """One reason why a query and a key may meet."""

    hides_rows = True  # may leave a query without any key

    @abstractmethod
    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        """[1 or B, 1 or H, 1 or T, S] bool, True where they may meet."""

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor:
        """[1 or B, N, 1 or h, g, s] bool, the same for few pairs; best said without all the others."""
        return spots.of_pairs(self.pairs(queries, keys))


@dataclass(frozen=True)
class Causal(Rule):
    """No query sees a later key."""

    hides_rows = False

    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        return (keys.places() <= queries.places()[:, None])[None, None]

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor:
        return keys.start + spots.k <= queries.start + spots.q


@dataclass(frozen=True)
class Window(Rule):
    """A query sees the last `width` keys, itself included; and all that last, which do not count."""

    width: int
    hides_rows = False

    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        if keys.lasting is not None:
            first = queries.start - keys.start
            counts = (~keys.lasting).cumsum(dim=1)  # [1 or B, S]
            newest = counts[:, first : first + queries.length, None]
            return ((counts[:, None] > newest - self.width) | keys.lasting[:, None])[:, None]
        return (keys.places() > queries.places()[:, None] - self.width)[None, None]

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor:
        if keys.lasting is not None:
            first = queries.start - keys.start
            counts = (~keys.lasting).cumsum(dim=1)
            newest = spots.of_rows(counts[:, first : first + queries.length], spots.q)
            inside = spots.of_rows(counts, spots.k) > newest - self.width
            return inside | spots.of_rows(keys.lasting, spots.k)
        return keys.start + spots.k > queries.start + spots.q - self.width


def narrowest(one: int | None, other: int | None) -> int | None:
    """The smaller of two windows; None where neither limits anything."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


@dataclass(frozen=True)
class Prefix(Rule):
    """Causal, but every query sees the first `length` real keys of its sequence ([B] or [1] long)."""

    length: Tensor
    hides_rows = False

    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        # by position, as padding in front and packing shift places; positions of a user's own say nothing
        numbers = keys.positions if keys.by_place else keys.places()[None]
        inside = numbers < self.length[:, None]  # [B, S]
        return Causal().pairs(queries, keys) | inside[:, None, None]

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor:
        numbers = keys.positions if keys.by_place else keys.places()[None]
        inside = spots.of_rows(numbers, spots.k) < self.length.view(-1, 1, 1, 1, 1)
        return Causal().at(queries, keys, spots) | inside


@dataclass(frozen=True)
class Padding(Rule):
    """Only real keys are seen."""

    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        assert keys.padding is not None
        return keys.padding[:, None, None]

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor:
        assert keys.padding is not None
        return spots.of_rows(keys.padding, spots.k)


@dataclass(frozen=True)
class Segments(Rule):
    """Only tokens of one segment meet."""

    hides_rows = False

    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        assert queries.segments is not None
        assert keys.segments is not None
        return (queries.segments[:, :, None] == keys.segments[:, None])[:, None]

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor:
        assert queries.segments is not None
        assert keys.segments is not None
        return spots.of_rows(queries.segments, spots.q) == spots.of_rows(keys.segments, spots.k)


@dataclass(frozen=True)
class Explicit(Rule):
    """The user's own mask, [1 or B, 1 or H, T, S] bool, whose keys begin at place `start`."""

    mask: Tensor
    start: int = 0

    def pairs(self, queries: Layout, keys: Layout) -> Tensor:
        return self.mask[..., keys.start - self.start :]


@dataclass(frozen=True)
class Mask:
    """Rules that all must hold; no rule means that every pair meets."""

    rules: tuple[Rule, ...] = ()

    def __and__(self, rule: Rule) -> Mask:
        return Mask((*self.rules, rule))

    @property
    def hides_rows(self) -> bool:
        return any(rule.hides_rows for rule in self.rules)

    @property
    def only_causal(self) -> bool:
        return len(self.rules) == 1 and isinstance(self.rules[0], Causal)

    def tensor(self, queries: Layout, keys: Layout) -> Tensor | None:
        """[1 or B, 1 or H, 1 or T, S] bool, True where a pair may meet; None when all do."""
        if not self.rules:
            return None
        return reduce(Tensor.logical_and, (rule.pairs(queries, keys) for rule in self.rules))

    def at(self, queries: Layout, keys: Layout, spots: Spots) -> Tensor | None:
        """[1 or B, N, 1 or h, g, s] bool, the same for few pairs; None when all may meet."""
        if not self.rules:
            return None
        return reduce(Tensor.logical_and, (rule.at(queries, keys, spots) for rule in self.rules))
