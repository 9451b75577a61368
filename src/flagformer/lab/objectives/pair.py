"""Objectives of models that read a source and predict a target."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.objectives import KINDS, PAIRS, Batch, Inputs, Objective
from flagformer.lab.objectives.reasons import IMAGES, ONE_TEXT, VECTORS, token_sizes
from flagformer.lab.objectives.segment_reader import Reading
from flagformer.lab.objectives.wrapped import inner
from flagformer.wrappers.memformer import Memformer
from flagformer.wrappers.xtransformer import XTransformer

AUDITED = 8  # tokens of the shortest row that can be audited
OTHERS = {"continuous": VECTORS, "vit": IMAGES}


class PairObjective(Objective):
    """The decoder predicts each token of the target from the source and the tokens before (teacher forcing).

    Both halves have one vocabulary: that of the data, then the start token, then `special` more. The target
    begins after the start token, which is not scored.
    """

    trains: ClassVar[tuple[str, ...]] = PAIRS
    refusals: ClassVar[Mapping[str, str]] = {
        kind: OTHERS.get(kind, ONE_TEXT) for kind in KINDS if kind not in PAIRS
    }

    def misfit(self, flags: Mapping[str, Any]) -> str:
        if flags["model"] == "memformer" and flags.get("encoder_only"):
            return "with `encoder_only` it has no decoder"
        return super().misfit(flags)

    def special(self, source: Source, longest: int) -> int:
        """The number of ids after the start token."""
        return 0

    @abstractmethod
    def lengths(self, source: Source, seq_len: int) -> tuple[int, int]:
        """The lengths of a source and a target made of rows of `seq_len` tokens."""

    @abstractmethod
    def pair(
        self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int
    ) -> tuple[Tensor, Tensor]:
        """Sources [B, S] and targets [B, T]."""

    def sizes(self, source: Source, longest: int, flags: Mapping[str, Any], least: int = 1) -> dict[str, Any]:
        count = source.num_tokens + 1 + self.special(source, longest)
        first, second = self.lengths(source, longest)
        return {
            **token_sizes(count, max(first, least), flags, "enc_"),
            **token_sizes(count, max(second, least), flags, "dec_"),
        }

    def filled(self, source: Source, longest: int, flags: Mapping[str, Any]) -> dict[str, Any]:
        return self.sizes(source, longest, flags, AUDITED)

    @property
    def fixed(self) -> tuple[str, ...]:
        return ("enc_num_tokens", "dec_num_tokens")

    def contents(self, name: str) -> str:
        return "the vocabulary of the data and the start token"

    def requires_causal(self, source: Source) -> bool:
        return True

    def batch(self, source: Source, split: Split, step: int, seed: int, rows: int, seq_len: int) -> Batch:
        """Sources [B, S], the decoder's inputs [B, T], which begin with the start token, and targets; for
        padded sources their mask [B, S] before the targets."""
        read, targets = self.pair(source, split, step, seed, rows, seq_len)
        start = torch.full((rows, 1), source.num_tokens)
        before = targets[:, :-1].masked_fill(targets[:, :-1] == IGNORE, 0)
        given = torch.cat([start, before], dim=1)
        if not source.pads_pairs:
            return read, given, targets
        valid = read != IGNORE
        return read.masked_fill(~valid, 0), given, valid, targets

    def example(self, source: Source, rows: int, seq_len: int) -> Inputs:
        first, second = self.lengths(source, seq_len)
        return torch.zeros(rows, first, dtype=torch.long), torch.zeros(rows, second, dtype=torch.long)

    def ask(self, model: nn.Module, inputs: Inputs, segment: int | None, losses: bool) -> Reading:
        source, given, *valid = inputs
        return read_pair(model, source, given, losses, *valid)


def read_pair(
    model: nn.Module, source: Tensor, given: Tensor, losses: bool = False, valid: Tensor | None = None
) -> Reading:
    """Logits [B, T, V] for the tokens after each token of `given` [B, T], by the model's own forward; `valid`
    is the mask of the source, bool [B, S]."""
    pair = inner(model)
    mask = _mask_argument(pair, valid)
    if not isinstance(pair, XTransformer | Memformer):
        logits, extra = model(source, given, **mask)
        return Reading(logits, extra if losses and pair.training else None)
    target = torch.cat([given, given[:, -1:]], dim=1)  # the forward does not read the last token
    if isinstance(pair, Memformer):
        results, outputs = model(source, target, return_logits=True, **mask)
        return Reading(results.dec_out, outputs.extra_loss if losses else None)
    _, outputs = model(source, target, return_outputs=True, **mask)
    logits = outputs.logits
    if logits is None:  # `loss_chunks`
        logits = pair.decoder.net.to_logits(outputs.embeddings)
    return Reading(logits, outputs.extra_loss if losses else None)


def greedy_targets(
    model: nn.Module, source: Tensor, start: Tensor, count: int, valid: Tensor | None = None
) -> Tensor:
    """The `count` most likely tokens after the start tokens [B, 1], one after another with a cache."""
    pair = inner(model)
    new: Tensor = pair.generate(source, start, count, temperature=0.0, **_mask_argument(pair, valid))
    return new


def _mask_argument(pair: Any, valid: Tensor | None) -> dict[str, Tensor]:
    """The mask of the source by the name that the model gives it."""
    if valid is None:
        return {}
    names = {XTransformer: "mask", Memformer: "src_mask"}
    name = next((name for kind, name in names.items() if isinstance(pair, kind)), "enc_input_mask")
    return {name: valid}
