"""Next token: the loss of language models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from flagformer.lab.data import Source, Split
from flagformer.lab.objectives import Batch, Objective, refused
from flagformer.lab.objectives.reasons import (
    BIDIRECTIONAL_ROUTING,
    IMAGES,
    ONE_OUTPUT,
    SEES_TARGETS,
    TWO_TEXTS,
    VECTORS,
    needs_ids,
    token_sizes,
)


class NextToken(Objective):
    """Each target is predicted from the tokens up to its position; text in nats and bits per byte."""

    name: Literal["next_token"] = "next_token"

    summary: ClassVar[str] = "Each token is predicted from the tokens before it."
    trains: ClassVar[tuple[str, ...]] = ("decoder", "prefix_decoder", "routing_lm")
    without_segments: ClassVar[str] = ""
    refusals: ClassVar[Mapping[str, str]] = refused(
        {
            "encoder": SEES_TARGETS,
            "classifier": ONE_OUTPUT,
            "xtransformer": TWO_TEXTS,
            "routing_encdec": TWO_TEXTS,
            "memformer": TWO_TEXTS,
            "continuous": VECTORS,
            "vit": IMAGES,
        },
        trains,
    )

    def misfit(self, flags: Mapping[str, Any]) -> str:
        if flags["model"] == "routing_lm" and flags.get("causal") is not True:
            return BIDIRECTIONAL_ROUTING
        return super().misfit(flags)

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return needs_ids(source)

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return token_sizes(source.num_tokens, longest, flags)

    def requires_causal(self, source: Source) -> bool:
        return True

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        return source.batch(split, step, seed, rows, seq_len)

    def is_bytes(self, source: Source) -> bool:
        return source.is_bytes
