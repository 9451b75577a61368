"""On which terms queries and keys meet, asked pair by pair: for cores that look at few pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flagformer.flow.layout import Layout
from flagformer.flow.mask import Causal, Mask
from flagformer.flow.qk_indices import QKIndices


@dataclass(frozen=True)
class BiasRow:
    """A position bias for each distance in places: entry `origin + slope * distance` of each head's row.

    Attributes:
        row: [1 or H, L].
    """

    row: Tensor
    origin: int
    slope: int = 1

    def at(self, distances: Tensor, heads: slice) -> Tensor:
        """[1 or B, N, 1 or h, g, s] long -> biases [1 or B, N, h, g, s]; beyond the row its ends."""
        row = self.row[heads] if self.row.shape[0] > 1 else self.row
        places = (self.origin + self.slope * distances).clamp(0, row.shape[1] - 1)
        ways = torch.arange(row.shape[0], device=row.device).view(1, 1, -1, 1, 1)
        at = ways * row.shape[1] + places
        # not `row[ways, places]`, whose strides differ between a run and its trace
        return row.flatten().index_select(0, at.flatten()).view(at.shape)


@dataclass(frozen=True)
class Terms:
    """Made once a forward and shared by its layers; nothing in it is of T * S unless a user gave positions.

    Attributes:
        mask: who may meet whom.
        queries, keys: the standing of both; the last query is the last key.
        row: biases by distance; None where there is no bias, or distances do not say it.
        bias: [1 or B, H, T, S] where they do not.
        learned: whether biases wanted a gradient when the forward began, as in `Pairs`.
    """

    mask: Mask
    queries: Layout
    keys: Layout
    row: BiasRow | None = None
    bias: Tensor | None = None
    learned: bool = False

    @property
    def row_starts(self) -> int:
        """How many keys are older than the first query."""
        return self.queries.start - self.keys.start

    def allowed(self, spots: QKIndices, only_earlier: bool) -> Tensor | None:
        """[1 or B, N, 1 or h, g, s] bool; None when all of them may meet.

        Args:
            only_earlier: no key of the spots is later than its query, whatever the mask says.
        """
        rules = tuple(rule for rule in self.mask.rules if not (only_earlier and isinstance(rule, Causal)))
        return Mask(rules).gather(self.queries, self.keys, spots)

    def bias_at(self, spots: QKIndices) -> Tensor | None:
        """[1 or B, N, h, g, s]; None where there is no bias."""
        if self.row is not None:
            return self.row.at(self.row_starts + spots.q_idx - spots.kv_idx, spots.heads)
        return None if self.bias is None else spots.of_pairs(self.bias)
