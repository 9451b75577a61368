"""Span corruption: Raffel et al. 2019, arXiv 1910.10683, section 3.1.4 and figure 2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from flagformer.lab.data import Source, Split, draws
from flagformer.lab.objectives.pair import PairObjective
from flagformer.lab.objectives.reasons import needs_ids


class SpanCorruption(PairObjective):
    """Random spans of a row are replaced by sentinels; the target is each sentinel and its span, in order.

    `rate * seq_len` tokens are removed in `rate * seq_len / mean_length` spans, both rounded, at least one.
    All divisions into spans are equally likely, and a row begins with a kept token and ends with a span, as
    in T5's code. `Thank you <1> me to your <2>` has the target `<1> for inviting <2> party <3>`: a last
    sentinel ends it. Sentinels follow the start token.
    """

    name: Literal["span_corruption"] = "span_corruption"
    rate: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that are removed.")
    mean_length: float = Field(default=3.0, ge=1, le=1e6, description="Mean length of a span in tokens.")

    summary: ClassVar[str] = (
        "Spans of a row are replaced by sentinels and predicted (T5, arXiv:1910.10683, section 3.1.4)."
    )

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return needs_ids(source)

    def counts(self, seq_len: int) -> tuple[int, int]:
        """The number of removed tokens, and of spans, of a row."""
        removed = min(max(1, round(seq_len * self.rate)), seq_len - 1)
        spans = max(1, round(removed / self.mean_length))
        return removed, min(spans, seq_len - removed)

    def special(self, source: Source, longest: int) -> int:
        return self.counts(longest)[1] + 1

    def contents(self, name: str) -> str:
        return "the vocabulary of the data, the start token and the sentinels"

    def lengths(self, source: Source, seq_len: int) -> tuple[int, int]:
        removed, spans = self.counts(seq_len)
        return seq_len - removed + spans, removed + spans + 1

    def pair(
        self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        ids = source.batch(split, step, seed, rows, seq_len)[0]
        removed, spans = self.counts(seq_len)
        generator = draws("span_corruption", split, seed, step, seq_len)
        lengths = torch.stack(
            [
                random_lengths(rows, seq_len - removed, spans, generator),
                random_lengths(rows, removed, spans, generator),
            ],
            dim=2,
        ).flatten(1)  # kept and removed lengths in turns, [B, 2 * spans]
        part = torch.searchsorted(lengths.cumsum(1), torch.arange(seq_len).repeat(rows, 1), right=True)
        return corrupted(ids, part, source.num_tokens + 1)

    def chance(self, source: Source) -> float | None:
        return None

    def metric(self, source: Source) -> str:
        return (
            f"removed spans, {self.rate:.0%} of each row, and their sentinels; accuracy: the share of these "
            "tokens predicted right given those before"
        )


def random_lengths(rows: int, total: int, parts: int, generator: torch.Generator) -> Tensor:
    """Lengths [B, parts] of at least 1 with the sum `total`, all equally likely."""
    order = torch.rand(rows, total - 1, generator=generator).argsort(1)
    cuts = order[:, : parts - 1].sort(1).values + 1
    ends = torch.cat([cuts, torch.full((rows, 1), total)], dim=1)
    return ends.diff(dim=1, prepend=torch.zeros(rows, 1, dtype=torch.long))


def corrupted(ids: Tensor, part: Tensor, sentinel: int) -> tuple[Tensor, Tensor]:
    """The inputs and targets of rows [B, T] whose tokens are in the parts [B, T]: 0, 2, ... are kept, 1, 3,
    ... are removed; `sentinel` is the first one's id. All rows must have equal numbers of removed tokens and
    of parts.
    """
    rows = len(ids)
    gone, span = part % 2 == 1, part // 2
    first = gone & (part.diff(dim=1, prepend=torch.full((rows, 1), -1)) != 0)
    marks = sentinel + span
    inputs = torch.where(first, marks, ids)[~gone | first].view(rows, -1)
    both = torch.stack([marks, ids], dim=2)[torch.stack([first, gone], dim=2)].view(rows, -1)
    last = sentinel + first.sum(1, keepdim=True)
    return inputs, torch.cat([both, last], dim=1)
