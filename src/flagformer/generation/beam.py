"""Beam search: the most likely continuations among a limited number per step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flagformer.generation.loop import StoppingCriteria
from flagformer.generation.next_token import NextTokenLogits
from flagformer.generation.prompts import Prompts
from flagformer.generation.sampling import check_largest
from flagformer.ops.sharded import without_gradient


@dataclass
class BeamHypotheses:
    """The best K finished continuations of each row.

    Attributes:
        tokens: long [B, K, seq_len].
        scores: [B, K], sum of log probabilities / length ** penalty; minus infinity for missing ones.
    """

    tokens: Tensor
    scores: Tensor

    def add(self, tokens: Tensor, scores: Tensor) -> None:
        """Add tokens [B, N, seq_len] with scores [B, N] and keep the best K, best first."""
        every = torch.cat([self.scores, scores], dim=1)
        self.scores, best = every.topk(self.scores.shape[1], dim=1)
        rows = torch.cat([self.tokens, tokens], dim=1)
        self.tokens = rows.gather(1, best[..., None].expand(-1, -1, rows.shape[2]))


def search(
    model: Any,
    prompts: Prompts,
    stopping: StoppingCriteria,
    beams: int,
    penalty: float,
    window: int | None,
    cached: bool,
    kwargs: Mapping[str, Any],
    embed_ids: Mapping[str, Tensor],
    condition: Tensor | None = None,
) -> BeamHypotheses:
    """The best `beams` continuations of every prompt, best first. Inputs must be checked before.

    A continuation ends with `eos_token` or after `seq_len` tokens. At each step all K unfinished ones may
    end, and the K most likely unfinished ones continue. The search stops when no unfinished one can reach
    the best K.
    """
    batch, length = prompts.ids.shape
    total = length + stopping.seq_len
    ids = torch.full((batch * beams, total), stopping.pad_value, dtype=torch.long, device=prompts.ids.device)
    ids[:, :length] = prompts.ids.repeat_interleave(beams, 0)
    with without_gradient(model):
        more = (kwargs, embed_ids, condition)
        next_logits = NextTokenLogits(model, prompts, total - 1 if cached else 0, window, *more)
        first = next_logits(prompts.ids)  # each prompt is read once
        next_logits.repeat(beams)
        best = _run(next_logits, first, ids, length, stopping, batch, beams, penalty)
    return BeamHypotheses(best.tokens.clone(), best.scores.clone())


def _run(
    next_logits: NextTokenLogits,
    first: Tensor,
    ids: Tensor,
    length: int,
    stopping: StoppingCriteria,
    batch: int,
    beams: int,
    penalty: float,
) -> BeamHypotheses:
    """`first` [B, V] are the logits after the prompts, whose rows `ids` [B * K, total] repeat."""
    total, device = ids.shape[1], ids.device
    logits = first.repeat_interleave(beams, 0)
    live = torch.full((batch, beams), -math.inf, device=device)
    live[:, 0] = 0.0  # at the start all beams of a row are equal: only one counts
    empty = torch.full((batch, beams, stopping.seq_len), stopping.pad_value, dtype=torch.long, device=device)
    finished = BeamHypotheses(empty, torch.full_like(live, -math.inf))
    offsets = beams * torch.arange(batch, device=device)[:, None]
    for position in range(length, total):
        num_new = position + 1 - length
        scores = live[..., None] + _log_probs(logits).view(batch, beams, -1)
        if stopping.eos_token is not None:
            ended = ids[:, length:].view(batch, beams, -1).clone()
            ended[:, :, num_new - 1] = stopping.eos_token
            finished.add(ended, scores[:, :, stopping.eos_token] / num_new**penalty)
            scores[:, :, stopping.eos_token] = -math.inf
        live, best = scores.flatten(1).topk(beams, dim=1)  # [B, K]
        parents = (offsets + best // scores.shape[2]).flatten()
        ids = ids.index_select(0, parents)
        ids[:, position] = (best % scores.shape[2]).flatten()
        if position + 1 == total:
            finished.add(ids[:, length:].view(batch, beams, -1), live / num_new**penalty)
        elif _is_done(finished, live, stopping.seq_len, penalty):
            break
        else:
            next_logits.reorder(parents)
            logits = next_logits(ids[:, : position + 1])
    return finished


def _is_done(finished: BeamHypotheses, live: Tensor, longest: int, penalty: float) -> bool:
    """Whether no unfinished continuation can reach the best K: its sum decreases with each token, and the
    largest length gives its best score."""
    return bool((finished.scores[:, -1] >= live[:, 0] / longest**penalty).all())


def _log_probs(logits: Tensor) -> Tensor:
    check_largest(logits.amax(dim=-1))
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
