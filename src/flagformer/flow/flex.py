"""An `AttentionBias` for FlexAttention: functions of indices, and a block mask."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from flagformer.flow.bias_views import PositionTable
from flagformer.flow.mask_rules import MaskMod


class FlexBias(NamedTuple):
    """Arguments of `torch.nn.attention.flex_attention.flex_attention`; None: omitted."""

    score_mod: Callable[..., Tensor] | None
    block_mask: Any


def mask_mod(bias: Any) -> MaskMod | None:
    """(b, h, q_idx, kv_idx) -> bool, kv_idx counting prefix keys; None: every pair is allowed."""
    if bias.mask_self:  # whether a query has another key depends on its whole row
        return _looked_up(bias.dense().allowed)
    mods = [rule.mask_mod(bias.q, bias.kv) for rule in bias.rules]
    if not mods:
        return None
    prefix, first = bias.num_prefix_kv, 0 if bias.heads is None else bias.heads.start

    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        inner = (kv_idx - prefix).clamp(min=0) if prefix else kv_idx
        allowed = reduce(torch.logical_and, [one(b, h + first, q_idx, inner) for one in mods])
        return allowed | (kv_idx < prefix) if prefix else allowed

    return mod


def block_mask(bias: Any) -> Any:
    """The BlockMask of all rules; None: every pair is allowed."""
    from torch.nn.attention.flex_attention import create_block_mask

    mod = mask_mod(bias)
    if mod is None:
        return None
    rows = max(bias.q.rows, bias.kv.rows, *(rule.rows for rule in bias.rules))
    heads = max([1, *(rule.heads for rule in bias.rules)])
    if bias.heads is not None and heads > 1:
        heads = bias.heads.stop - bias.heads.start
    keys = bias.num_prefix_kv + bias.kv.length
    return create_block_mask(mod, rows, heads, bias.q.length, keys, device=str(bias.q.positions.device))


def score_mod(bias: Any) -> Callable[..., Tensor] | None:
    """(score, b, h, q_idx, kv_idx) -> score with its position bias; None: no bias."""
    prefix, first = bias.num_prefix_kv, 0 if bias.heads is None else bias.heads.start
    source = bias.position_source()
    if source.table is not None:
        added = _from_table(source.table, bias.offset)
    elif source.scores is not None:
        added = _looked_up(source.scores)
    else:
        return None

    def mod(score: Tensor, b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        value = added(b, h + first, q_idx, (kv_idx - prefix).clamp(min=0))
        return torch.where(kv_idx < prefix, score, score + value)

    return mod


def _from_table(table: PositionTable, offset: int) -> MaskMod:
    row = table.row
    if len(row) == 1:
        return lambda b, h, q_idx, kv_idx: row[0][table.entries(q_idx + offset - kv_idx)]
    return lambda b, h, q_idx, kv_idx: row[h, table.entries(q_idx + offset - kv_idx)]


def _looked_up(x: Tensor | None) -> MaskMod:
    """Entries of x [1 or B, 1 or H, 1 or T, S]."""
    assert x is not None

    def mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        at = [idx if size > 1 else torch.zeros_like(idx) for idx, size in zip((b, h, q_idx), x.shape[:3])]
        return x[at[0], at[1], at[2], kv_idx]

    return mod
