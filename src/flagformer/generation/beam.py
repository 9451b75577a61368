"""Beam search: the most likely continuations, as far as a few of them at a time can tell."""

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
    """Ended continuations, the best K of each row.

    Attributes:
        tokens: long [B, K, seq_len].
        scores: [B, K], sum of log probabilities / length ** penalty; minus infinity where there is none.
    """

    tokens: Tensor
    scores: Tensor

    def add(self, tokens: Tensor, scores: Tensor) -> None:
        """[B, N, seq_len] and [B, N] more; the best K stay, best first."""
        every = torch.cat([self.scores, scores], dim=1)
        self.scores, best = every.topk(self.scores.shape[1], dim=1)
        rows = torch.cat([self.tokens, tokens], dim=1)
        self.tokens = rows.gather(1, best[..., None].expand(-1, -1, rows.shape[2]))


def search(
    model: Any,
    prompts: Prompts,
    ending: StoppingCriteria,
    beams: int,
    penalty: float,
    window: int | None,
    cached: bool,
    side: Mapping[str, Any],
    embed_ids: Mapping[str, Tensor],
) -> BeamHypotheses:
    """The best `beams` continuations of every prompt, best first. Inputs are taken as checked.

    A continuation ends with `eos_token` or after `seq_len` tokens. At each step all K live ones may end, and
    the K most likely unended ones live on; it stops when no live one can still enter the pool.
    """
    batch, length = prompts.ids.shape
    starts = None if prompts.starts is None else prompts.starts.repeat_interleave(beams, 0)
    rows = Prompts(prompts.ids.repeat_interleave(beams, 0), starts, batched=True)
    total = length + ending.seq_len
    ids = torch.full((batch * beams, total), ending.pad_value, dtype=torch.long, device=rows.ids.device)
    ids[:, :length] = rows.ids
    with without_gradient(model):
        wide = {name: _widen(value, batch, beams) for name, value in side.items()}
        beside = {name: _widen(value, batch, beams) for name, value in embed_ids.items()}
        reader = NextTokenLogits(model, rows, total - 1 if cached else 0, window, wide, beside)
        pool = _run(reader, ids, length, ending, batch, beams, penalty)
    return BeamHypotheses(pool.tokens.clone(), pool.scores.clone())


def _run(
    reader: NextTokenLogits,
    ids: Tensor,
    length: int,
    ending: StoppingCriteria,
    batch: int,
    beams: int,
    penalty: float,
) -> BeamHypotheses:
    total, device = ids.shape[1], ids.device
    live = torch.full((batch, beams), -math.inf, device=device)
    live[:, 0] = 0.0  # all beams of a row are one to begin with
    empty = torch.full((batch, beams, ending.seq_len), ending.pad_value, dtype=torch.long, device=device)
    pool = BeamHypotheses(empty, torch.full_like(live, -math.inf))
    offsets = beams * torch.arange(batch, device=device)[:, None]
    for place in range(length, total):
        made = place + 1 - length
        scores = live[..., None] + _log_probs(reader(ids[:, :place])).view(batch, beams, -1)
        if ending.eos_token is not None:
            ended = ids[:, length:].view(batch, beams, -1).clone()
            ended[:, :, made - 1] = ending.eos_token
            pool.add(ended, scores[:, :, ending.eos_token] / made**penalty)
            scores[:, :, ending.eos_token] = -math.inf
        live, best = scores.flatten(1).topk(beams, dim=1)  # [B, K]
        parents = (offsets + best // scores.shape[2]).flatten()
        ids = ids.index_select(0, parents)
        ids[:, place] = (best % scores.shape[2]).flatten()
        if place + 1 == total:
            pool.add(ids[:, length:].view(batch, beams, -1), live / made**penalty)
        elif _settled(pool, live, ending.seq_len, penalty):
            break
        else:
            reader.reorder(parents)
    return pool


def _settled(pool: BeamHypotheses, live: Tensor, longest: int, penalty: float) -> bool:
    """Whether no live continuation can still enter the pool: sums only fall, and the longest divides most."""
    return bool((pool.scores[:, -1] >= live[:, 0] / longest**penalty).all())


def _log_probs(logits: Tensor) -> Tensor:
    check_largest(logits.amax(dim=-1))
    return logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def _widen(value: Any, batch: int, beams: int) -> Any:
    """What belongs to rows belongs to each of their beams."""
    if isinstance(value, Tensor) and value.dim() and len(value) == batch:
        return value.repeat_interleave(beams, 0)
    return value
