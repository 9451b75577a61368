"""`attention_mask` and `position_ids` of transformers, as arguments of a model of flags."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.ops.traced import readable


def check_padding(attention_mask: Tensor | None, rows: int, length: int) -> Tensor | None:
    """[rows, length] bool, True for tokens; None without a mask, and for one without padding."""
    if attention_mask is None:
        return None
    if tuple(attention_mask.shape) != (rows, length):
        raise ValueError(
            f"`attention_mask` must have shape [{rows}, {length}], with the tokens of the cache, but has "
            f"{list(attention_mask.shape)}"
        )
    mask = attention_mask.bool()
    return None if bool(mask.all()) else mask


def padding_arguments(mask: Tensor | None) -> dict[str, Any]:
    """The arguments `seq_start_pos` and `mask` of a forward: the first token of each row has position 0."""
    if mask is None:
        return {}
    starts, left = first_tokens(mask)
    found: dict[str, Any] = {"seq_start_pos": starts} if bool(starts.any()) else {}
    return found if left else {**found, "mask": mask}


def cached_starts(mask: Tensor | None) -> Tensor | None:
    """[B] the first token of each left-padded row; ValueError for padding after a token."""
    if mask is None:
        return None
    starts, left = first_tokens(mask)
    if not left:
        raise ValueError(
            "`attention_mask` must have padding at the left of each row alone when tokens are cached, but "
            "has padding after tokens: set `tokenizer.padding_side = 'left'`, or give `use_cache=False`"
        )
    return starts


def refuse_new_padding(attention_mask: Tensor | None, stored: int, length: int) -> None:
    """ValueError for padding among tokens that continue a cache; checked on the CPU only."""
    if attention_mask is None or not readable(attention_mask):
        return
    if attention_mask.shape[1] != stored + length or not bool(attention_mask[:, stored:].all()):
        raise ValueError(
            f"`attention_mask` must have shape [B, {stored + length}], with those of the cache, and no "
            f"padding after them, but has shape {list(attention_mask.shape)} and "
            f"{int((attention_mask == 0).sum())} zeros"
        )


def first_tokens(mask: Tensor) -> tuple[Tensor, bool]:
    """[B] the first True of each row of a mask [B, T], and whether all after it are True."""
    starts = mask.int().argmax(dim=1)
    columns = torch.arange(mask.shape[1], device=mask.device)
    return starts, bool((mask == (columns >= starts[:, None])).all())


def packed_lengths(
    position_ids: Tensor | None, attention_mask: Tensor | None, rows: int, length: int, stored: int | None
) -> list[list[int]] | None:
    """The lengths of the sequences packed in each row; None for rows of one sequence.

    Positions that begin at 0 again mark another sequence. The positions of tokens that continue a cache are
    checked on the CPU only.

    Args:
        position_ids: [1 or rows, length]; None: those of one sequence.
        attention_mask: [rows, stored + length], zeros for padding.
        stored: number of tokens in the cache; None without a cache.

    Raises:
        ValueError: for other positions than those of the tokens of a row, or of packed sequences.
    """
    if position_ids is None or (stored and not readable(position_ids)):
        return None
    before = stored or 0
    if attention_mask is not None and tuple(attention_mask.shape) != (rows, before + length):
        return None  # an error of the mask
    if tuple(position_ids.shape) not in ((1, length), (rows, length)):
        raise ValueError(
            f"`position_ids` must have shape [{rows}, {length}], as `input_ids`, but has "
            f"{list(position_ids.shape)}"
        )
    positions = position_ids.expand(rows, length)
    mask = positions.new_ones(rows, before + length) if attention_mask is None else attention_mask.long()
    valid = mask[:, before:].bool()
    if bool((positions == mask.cumsum(1)[:, before:] - 1)[valid].all()):
        return None
    index = torch.arange(length, device=positions.device)
    starts = positions == 0
    restart = positions == index - torch.where(starts, index, 0).cummax(1).values
    if stored is not None or not bool((valid & restart).all()):
        raise ValueError(
            "`position_ids` must count the tokens of each row from 0, or from 0 again at the first token of "
            "each packed sequence, which needs rows without padding and no cache: leave them out, or see "
            "DataCollatorWithFlattening"
        )
    ends = [[*row.nonzero()[1:, 0].tolist(), length] for row in starts]
    return [[end - start for start, end in zip([0, *row], row)] for row in ends]
