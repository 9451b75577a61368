"""Masked language modelling: Devlin et al. 2018, arXiv 1810.04805, section 3.1."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field

from flagformer.lab.data import Source, Split, draws
from flagformer.lab.objectives import Batch, Objective, refused
from flagformer.lab.objectives.masking import masked_positions, targets_at
from flagformer.lab.objectives.reasons import (
    CAUSAL_ROUTING,
    EARLIER_ONLY,
    IMAGES,
    ONE_OUTPUT,
    TWO_TEXTS,
    VECTORS,
    needs_ids,
    token_sizes,
)

REFUSALS = {
    "decoder": EARLIER_ONLY,
    "prefix_decoder": f"outside a prefix {EARLIER_ONLY}",
    "classifier": ONE_OUTPUT,
    "xtransformer": TWO_TEXTS,
    "routing_encdec": TWO_TEXTS,
    "memformer": TWO_TEXTS,
    "continuous": VECTORS,
    "vit": IMAGES,
}
KEPT, RANDOM = 0.1, 0.1  # shares of the chosen tokens that stay, or become a random token


class MaskedLM(Objective):
    """A share of the tokens of each row is predicted from the others.

    `rate * seq_len` positions, rounded, at least one, are chosen in each row. With `replace: mixed` 80 % of
    them become the mask token, 10 % a random token of the vocabulary, and 10 % stay, as in BERT; with
    `replace: mask` all become the mask token, as they always do in evaluation. The mask token is the last id,
    after the vocabulary of the data.
    """

    name: Literal["masked_lm"] = "masked_lm"
    rate: float = Field(default=0.15, gt=0, lt=1, description="Share of the tokens that are predicted.")
    replace: Literal["mixed", "mask"] = Field(
        default="mixed",
        description="mixed: 80 % mask, 10 % random, 10 % the token; mask: all the mask token.",
    )

    summary: ClassVar[str] = (
        "A share of the tokens is masked and predicted from the others (BERT, arXiv:1810.04805)."
    )
    trains: ClassVar[tuple[str, ...]] = ("encoder", "routing_lm")
    refusals: ClassVar[Mapping[str, str]] = refused(REFUSALS, trains)

    def misfit(self, flags: Mapping[str, Any]) -> str:
        if flags["model"] == "routing_lm" and flags.get("causal") is True:
            return CAUSAL_ROUTING
        return super().misfit(flags)

    def data_misfit(self, source: Source, flags: Mapping[str, Any]) -> str:
        return needs_ids(source)

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return token_sizes(source.num_tokens + 1, longest, flags)

    def contents(self, name: str) -> str:
        return "the vocabulary of the data and the mask token"

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        ids = source.batch(split, step, seed, rows, seq_len)[0]
        generator = draws("masked_lm", split, seed, step, seq_len)
        count = max(1, round(self.rate * seq_len))
        chosen = masked_positions(torch.full((rows,), count), seq_len, generator)
        inputs = ids.masked_fill(chosen, source.num_tokens)
        if self.replace == "mixed" and split == "train":
            draw = torch.rand(rows, seq_len, generator=generator)
            others = torch.randint(source.num_tokens, ids.shape, generator=generator)
            inputs = torch.where(chosen & (draw < KEPT + RANDOM), others, inputs)
            inputs = torch.where(chosen & (draw < KEPT), ids, inputs)
        return inputs, targets_at(ids, chosen)

    def figures(self, nats: float) -> dict[str, float]:
        return {"pseudo_perplexity": math.exp(min(nats, 700.0))}

    def chance(self, source: Source) -> float | None:
        return None if source.is_bytes else 1 / source.num_tokens

    def metric(self, source: Source) -> str:
        chance = "" if source.is_bytes else "; chance: 1 / num_tokens"
        return (
            f"masked tokens, {self.rate:.0%} of each row, from the others; accuracy: the share predicted "
            f"right{chance}; pseudo-perplexity: exp of the mean loss"
        )
