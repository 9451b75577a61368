"""Sequence classification: one class a row, as in Long Range Arena (arXiv 2011.04006)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.objectives import Batch, Inputs, Objective, Reading, refused
from flagformer.lab.objectives.reasons import OF_OTHER_ROWS, token_sizes
from flagformer.lab.objectives.segment_reader import read_rows

NO_CLASSES = "its logits are of tokens; `model: classifier` has logits of classes"


class SequenceClassification(Objective):
    """The class of a row is predicted from all its tokens. No row of a split is a row of another."""

    name: Literal["sequence_classification"] = "sequence_classification"

    summary: ClassVar[str] = "The class of a row is predicted from all its tokens (BERT, arXiv:1810.04805)."
    trains: ClassVar[tuple[str, ...]] = ("classifier",)
    refusals: ClassVar[Mapping[str, str]] = refused(
        {
            "decoder": NO_CLASSES,
            "prefix_decoder": NO_CLASSES,
            "routing_lm": NO_CLASSES,
            "encoder": NO_CLASSES,
            **OF_OTHER_ROWS,
        },
        trains,
    )

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return "" if source.num_classes is not None else "its rows have no class"

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        sizes = token_sizes(source.num_tokens, longest, flags)
        return {**sizes, "num_classes": source.num_classes}

    @property
    def fixed(self) -> tuple[str, ...]:
        return ("num_tokens", "num_classes")

    def contents(self, name: str) -> str:
        return super().contents(name) if name == "num_tokens" else "the number of classes of the data"

    def check(self, source: Source, split: Split, seq_len: int) -> None:
        source.classified(split, 0, 0, 1, seq_len)

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        """Rows [B, T] and classes [B, 1]; for padded rows their mask [B, T] between them."""
        ids, classes = source.classified(split, step, seed, rows, seq_len)
        if not source.pads_classified:
            return ids, classes
        valid = ids != IGNORE
        return ids.masked_fill(~valid, 0), valid, classes

    def ask(self, model: nn.Module, inputs: Inputs, segment: int | None, losses: bool) -> Reading:
        return read_rows(model, inputs[0], segment, losses, mask=inputs[1] if len(inputs) > 1 else None)

    def chance(self, source: Source) -> float | None:
        return None if source.num_classes is None else 1 / source.num_classes

    def metric(self, source: Source) -> str:
        return f"the class of a row; accuracy: the share predicted right; chance: 1 / {source.num_classes}"
