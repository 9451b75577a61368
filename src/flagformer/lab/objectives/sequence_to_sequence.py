"""Sequence to sequence: a target given a source, with teacher forcing (arXiv 1409.3215)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.objectives import Inputs
from flagformer.lab.objectives.pair import PairObjective, greedy_targets


class SequenceToSequence(PairObjective):
    """The target of a pair is predicted from its source.

    Tasks such as copy, reverse, sort and addition are scored by exact match: the share of rows whose whole
    target is generated greedily, with a cache. The source of a row of text is its first half, and the target
    its second half.
    """

    name: Literal["sequence_to_sequence"] = "sequence_to_sequence"

    summary: ClassVar[str] = (
        "A target is predicted from a source, with teacher forcing (arXiv:1409.3215, arXiv:1706.03762)."
    )

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return "" if source.has_pairs else "its rows are not pairs of a source and a target"

    def lengths(self, source: Source, seq_len: int) -> tuple[int, int]:
        return source.pair_lengths(seq_len)

    def check(self, source: Source, split: Split, seq_len: int) -> None:
        source.paired(split, 0, 0, 1, seq_len)

    def pair(
        self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        return source.paired(split, step, seed, rows, seq_len)

    def has_answers(self, source: Source) -> bool:
        return not source.is_bytes

    def exact_rows(self, model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        read, given, *valid = inputs
        found = greedy_targets(model, read, given[:, :1], targets.shape[1], *valid)
        return ((found == targets) | (targets == IGNORE)).all(1)

    def metric(self, source: Source) -> str:
        if source.is_bytes:
            return (
                "the second half of each row given the first; accuracy: the share of tokens predicted right"
            )
        return (
            "the target of each pair; accuracy: the share of its tokens predicted right given those before; "
            "exact match: the share of rows generated without a mistake"
        )

    def quality_of(self, source: Source) -> tuple[str, str]:
        return ("exact match", "exact_match") if self.has_answers(source) else self.quality

    def chance(self, source: Source) -> float | None:
        return None if self.has_answers(source) else source.chance
