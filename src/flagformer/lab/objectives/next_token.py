"""Next token: the loss of language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import nn

from flagformer.lab.data import Source, Split
from flagformer.lab.objectives import Batch, Inputs, Reading, refused
from flagformer.lab.objectives.reasons import BIDIRECTIONAL_ROUTING, OF_OTHER_ROWS, SEES_TARGETS
from flagformer.lab.objectives.rows import RowObjective
from flagformer.lab.objectives.segment_reader import read_rows


class NextToken(RowObjective):
    """Each target is predicted from the tokens up to its position; text in nats and bits per byte."""

    name: Literal["next_token"] = "next_token"

    summary: ClassVar[str] = "Each token is predicted from the tokens before it."
    reads_packed: ClassVar[bool] = True
    trains: ClassVar[tuple[str, ...]] = ("decoder", "prefix_decoder", "routing_lm")
    without_segments: ClassVar[str] = ""
    refusals: ClassVar[Mapping[str, str]] = refused({"encoder": SEES_TARGETS, **OF_OTHER_ROWS}, trains)

    def misfit(self, flags: Mapping[str, Any]) -> str:
        if flags["model"] == "routing_lm" and flags.get("causal") is not True:
            return BIDIRECTIONAL_ROUTING
        return super().misfit(flags)

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        if source.is_packed and flags["model"] == "routing_lm":
            return "its rows hold several documents or padding, which `model: routing_lm` does not separate"
        return super().data_misfit(source, flags)

    def requires_causal(self, source: Source) -> bool:
        return True

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        ids, targets = source.batch(split, step, seed, rows, seq_len)
        lengths = source.sequence_lengths(split, step, seed, rows, seq_len)
        return (ids, targets) if lengths is None else (ids, lengths, targets)

    def ask(self, model: nn.Module, inputs: Inputs, segment: int | None, losses: bool) -> Reading:
        return read_rows(model, inputs[0], segment, losses, *inputs[1:])

    def is_bytes(self, source: Source) -> bool:
        return source.is_bytes
