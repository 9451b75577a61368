"""Objectives that mask random positions of each row and predict their tokens from the others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from flagformer.lab.data import IGNORE, Source
from flagformer.lab.objectives import refused
from flagformer.lab.objectives.reasons import CAUSAL_ROUTING, EARLIER_ONLY, OF_OTHER_ROWS, token_sizes
from flagformer.lab.objectives.rows import RowObjective


class MaskedObjective(RowObjective):
    """The mask token is the last id, after the vocabulary of the data."""

    trains: ClassVar[tuple[str, ...]] = ("encoder", "routing_lm")
    refusals: ClassVar[Mapping[str, str]] = refused(
        {"decoder": EARLIER_ONLY, "prefix_decoder": f"outside a prefix {EARLIER_ONLY}", **OF_OTHER_ROWS},
        trains,
    )

    def misfit(self, flags: Mapping[str, Any]) -> str:
        if flags["model"] == "routing_lm" and flags.get("causal") is True:
            return CAUSAL_ROUTING
        return super().misfit(flags)

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return token_sizes(source.num_tokens + 1, longest, flags)

    def contents(self, name: str) -> str:
        return "the vocabulary of the data and the mask token"

    def chance(self, source: Source) -> float | None:
        return None if source.is_bytes else 1 / source.num_tokens


def chance_of(source: Source) -> str:
    """The chance of a masked token, as the end of a sentence; empty for bytes of text."""
    return "" if source.is_bytes else "; chance: 1 / num_tokens"


def masked_positions(counts: Tensor, seq_len: int, generator: torch.Generator) -> Tensor:
    """bool [B, T], True at `counts` [B] random positions of each row, all sets equally likely."""
    ranks = torch.rand(len(counts), seq_len, generator=generator).argsort(1).argsort(1)
    return ranks < counts[:, None]


def targets_at(ids: Tensor, positions: Tensor) -> Tensor:
    """The ids at the positions, `IGNORE` elsewhere: [B, T]."""
    return torch.where(positions, ids, IGNORE)
