"""Objectives of models that read one row of tokens and have a logit for each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.lab.data import Source
from flagformer.lab.objectives import Objective
from flagformer.lab.objectives.reasons import needs_ids, token_sizes


class RowObjective(Objective):
    """Its data are token ids, which set the vocabulary and the length of the model."""

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return needs_ids(source)

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return token_sizes(source.num_tokens, longest, flags)
