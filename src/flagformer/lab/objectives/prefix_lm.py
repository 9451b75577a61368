"""Prefix language modelling: Raffel et al. 2019, arXiv 1910.10683, section 3.2.1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import nn

from flagformer.lab.data import IGNORE, Source, Split, draws
from flagformer.lab.objectives import Batch, Inputs, refused
from flagformer.lab.objectives.reasons import OF_OTHER_ROWS, SEES_TARGETS
from flagformer.lab.objectives.rows import RowObjective
from flagformer.lab.objectives.segment_reader import Reading
from flagformer.lab.objectives.wrapped import inner


class PrefixLM(RowObjective):
    """The tokens after a prefix are predicted; all tokens attend to the whole prefix.

    The prefix of a row of text has a random length, uniform from 1 to `seq_len - 1`, and the tokens after it
    are scored; that of a row of a task ends where its first scored token is predicted.
    """

    name: Literal["prefix_lm"] = "prefix_lm"

    summary: ClassVar[str] = (
        "The tokens after a prefix are predicted; attention to the prefix is bidirectional "
        "(arXiv:1910.10683)."
    )
    trains: ClassVar[tuple[str, ...]] = ("prefix_decoder",)
    refusals: ClassVar[Mapping[str, str]] = refused(
        {
            "decoder": "it has no prefix; `model: prefix_decoder` has one",
            "routing_lm": "it has no prefix; `model: prefix_decoder` has one",
            "encoder": SEES_TARGETS,
            **OF_OTHER_ROWS,
        },
        trains,
    )

    def requires_causal(self, source: Source) -> bool:
        return True

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        """Ids [B, T], the lengths of the prefixes [B], and targets."""
        ids, targets = source.batch(split, step, seed, rows, seq_len)
        if source.is_bytes:
            generator = draws("prefix_lm", split, seed, step, seq_len)
            prefix = torch.randint(1, seq_len, (rows,), generator=generator)
        else:
            prefix = 1 + (targets != IGNORE).long().argmax(1)  # of the first scored target
        before = torch.arange(seq_len) < prefix[:, None] - 1
        return ids, prefix, targets.masked_fill(before, IGNORE)

    def example(self, source: Source, rows: int, seq_len: int) -> Inputs:
        return source.example(rows, seq_len), torch.ones(rows, dtype=torch.long)

    def ask(self, model: nn.Module, inputs: Inputs, segment: int | None, losses: bool) -> Reading:
        ids, prefix = inputs
        if losses and inner(model).has_losses:
            logits, outputs = model(ids, prefix_attn_len=prefix, return_losses=True)
            return Reading(logits, outputs.extra_loss)
        return Reading(model(ids, prefix_attn_len=prefix), None)

    def metric(self, source: Source) -> str:
        if source.is_bytes:
            return "tokens after a prefix of random length; accuracy: the share predicted right"
        return source.metric
