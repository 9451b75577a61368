"""Image classification: one class an image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from flagformer.lab.data import Source, Split
from flagformer.lab.objectives import KINDS, Batch, Objective
from flagformer.lab.objectives.reasons import TOKENS, VECTORS


class ImageClassification(Objective):
    """The class of an image is predicted from its patches (arXiv:2010.11929)."""

    name: Literal["image_classification"] = "image_classification"

    summary: ClassVar[str] = "The class of an image is predicted from its patches (arXiv:2010.11929)."
    trains: ClassVar[tuple[str, ...]] = ("vit",)
    without_segments: ClassVar[str] = "images are not sequences"
    refusals: ClassVar[Mapping[str, str]] = {
        kind: VECTORS if kind == "continuous" else TOKENS for kind in KINDS if kind != "vit"
    }

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return "" if source.form == "images" else f"its rows are {source.form}, not images"

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return {**source.image, "num_classes": source.num_tokens}

    @property
    def fixed(self) -> tuple[str, ...]:
        return ("num_classes",)

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        return source.batch(split, step, seed, rows, seq_len)
