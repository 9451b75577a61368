"""Query heads and key/value heads of another number."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class HeadMap(NamedTuple):
    """The heads of a model from those of another one.

    New query heads are copies of old ones, and their columns of the output projection are divided by the
    number of copies. Key/value heads are repeated, or averages of consecutive ones (2305.13245, section 2.1).

    Attributes:
        queries: the old head of each new query head.
        groups: the old heads of each new key/value head, whose mean it is.
    """

    queries: tuple[int, ...]
    groups: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(old: tuple[int, int], new: tuple[int, int]) -> HeadMap | None:
        """The map between two (query heads, key/value heads); None where an old head has no place."""
        (heads, groups), (new_heads, new_groups) = old, new
        if new_heads < heads or (new_groups < groups and groups % new_groups):
            return None
        if new_groups < groups:
            share = groups // new_groups
            averaged = tuple(tuple(range(g * share, (g + 1) * share)) for g in range(new_groups))
            if new_heads % heads:
                return None
            return HeadMap(tuple(head * heads // new_heads for head in range(new_heads)), averaged)
        group_of = [group * groups // new_groups for group in range(new_groups)]
        each, used = heads // groups, Counter[int]()
        queries = []
        for head in range(new_heads):
            group = group_of[head // (new_heads // new_groups)]
            queries.append(group * each + used[group] % each)
            used[group] += 1
        if any(used[group] < each for group in range(groups)):
            return None
        return HeadMap(tuple(queries), tuple((group,) for group in group_of))

    @property
    def averages(self) -> bool:
        return any(len(group) > 1 for group in self.groups)

    @property
    def even(self) -> bool:
        """Whether all query heads have the same number of copies, and all key/value heads too."""
        single = [group[0] for group in self.groups]
        return len(set(Counter(self.queries).values())) == 1 and len(set(Counter(single).values())) == 1

    def copies(self) -> list[int]:
        """The number of copies of the old head of each new query head."""
        counts = Counter(self.queries)
        return [counts[head] for head in self.queries]


def head_counts(settings: Mapping[str, Any], prefix: str, cross: bool) -> tuple[int, int] | None:
    """(query heads, key/value heads) of the attention of a stack; None without key/value heads."""
    heads = settings.get(f"{prefix}heads")
    groups = settings.get(f"{prefix}{'cross_' if cross else ''}attn_kv_heads")
    return (heads, groups) if isinstance(heads, int) and isinstance(groups, int) else None


def mapped_heads(value: Tensor, heads: HeadMap, dim: int) -> Tensor:
    """A tensor with H * n numbers in dimension `dim`, by query head -> the same by new query head."""
    count = max(heads.queries) + 1
    by_head = value.unflatten(dim, (count, -1))
    index = value.new_tensor(heads.queries, dtype=torch.long)
    return by_head.index_select(dim % value.dim(), index).flatten(dim % value.dim(), dim % value.dim() + 1)


def divided_heads(value: Tensor, heads: HeadMap) -> Tensor:
    """The output projection [D, H * V], of new heads; divided by the number of copies."""
    copies = value.new_tensor(heads.copies()).repeat_interleave(value.shape[1] // (max(heads.queries) + 1))
    return mapped_heads(value, heads, 1) / copies


def mapped_groups(value: Tensor, heads: HeadMap) -> Tensor:
    """[G * n, ...] by key/value head -> the same by new key/value head."""
    count = max(max(group) for group in heads.groups) + 1
    by_group = value.unflatten(0, (count, -1))
    parts = [_mean(by_group[list(group)]) for group in heads.groups]
    return torch.stack(parts).flatten(0, 1)


def _mean(parts: Tensor) -> Tensor:
    """The mean of the first dimension; a single part as it is."""
    return parts[0] if len(parts) == 1 else parts.float().mean(0).to(parts.dtype)
