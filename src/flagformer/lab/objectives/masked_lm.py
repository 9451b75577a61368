"""Masked language modelling: Devlin et al. 2018, arXiv 1810.04805, section 3.1."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field

from flagformer.lab.data import Source, Split, draws
from flagformer.lab.objectives import Batch
from flagformer.lab.objectives.masking import MaskedObjective, chance_of, masked_positions, targets_at

KEPT, RANDOM = 0.1, 0.1  # shares of the chosen tokens that stay, or become a random token


class MaskedLM(MaskedObjective):
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

    def metric(self, source: Source) -> str:
        return (
            f"masked tokens, {self.rate:.0%} of each row, from the others; accuracy: the share predicted "
            f"right{chance_of(source)}; pseudo-perplexity: exp of the mean loss"
        )
