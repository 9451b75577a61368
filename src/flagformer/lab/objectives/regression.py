"""Regression: vectors predicted from vectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from flagformer.lab.data import Source, Split
from flagformer.lab.objectives import KINDS, Batch, Objective
from flagformer.lab.objectives.reasons import IMAGES, TOKENS


class Regression(Objective):
    """The loss is the squared error, the mean over the numbers of a vector."""

    name: Literal["regression"] = "regression"

    summary: ClassVar[str] = "A vector is predicted at each position; the loss is the squared error."
    trains: ClassVar[tuple[str, ...]] = ("continuous",)
    refusals: ClassVar[Mapping[str, str]] = {
        kind: IMAGES if kind == "vit" else TOKENS for kind in KINDS if kind != "continuous"
    }
    quality: ClassVar[tuple[str, str]] = ("explained share", "accuracy")
    unit: ClassVar[str] = "squared error"

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        if source.form != "vectors":
            return f"its rows are {source.form}, not vectors"
        if source.predicts_next and flags.get("causal", True) is False:
            return "its targets are the next inputs, which a model with `causal: false` reads"
        return ""

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return {"max_seq_len": longest, "dim_in": source.num_tokens, "dim_out": source.num_tokens}

    @property
    def fixed(self) -> tuple[str, ...]:
        return ("dim_in", "dim_out")

    def contents(self, name: str) -> str:
        return "the width of the data's vectors"

    def requires_causal(self, source: Source) -> bool:
        return source.predicts_next

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        return source.batch(split, step, seed, rows, seq_len)

    def example_targets(self, logits: Tensor) -> Tensor:
        return torch.zeros_like(logits)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits.float() - targets.float()).square().mean(-1)

    def counted(self, targets: Tensor) -> Tensor:
        return torch.ones(targets.shape[:2], dtype=torch.bool, device=targets.device)

    def score(self, logits: Tensor, targets: Tensor) -> tuple[float, float]:
        """The explained part of the targets' sum of squares, and that sum."""
        whole = targets.double().square().sum()
        error = (logits.double() - targets.double()).square().sum()
        return (whole - error).item(), whole.item()
