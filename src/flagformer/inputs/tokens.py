"""Checks of token ids, positions and prefixes."""

from __future__ import annotations

import torch
from torch import Tensor

from flagformer.flow import Layout
from flagformer.ops.traced import readable
from flagformer.stack.inputs import INTEGERS, check_tensor


def check_ids(x: Tensor, num_tokens: int, name: str = "x") -> None:
    """Check ids [B, T] against the vocabulary (on the CPU only: other devices would be synchronised)."""
    check_integers(name, x)
    if not x.numel():
        raise ValueError(f"`{name}` must hold at least one row of one token, but has shape {list(x.shape)}")
    if not readable(x):
        return
    low, high = (int(value) for value in torch.aminmax(x))
    if low < 0 or high >= num_tokens:
        wrong = low if low < 0 else high
        raise ValueError(
            f"`{name}` must hold ids from 0 to {num_tokens - 1} (`num_tokens`), but holds {wrong}"
        )


def check_integers(name: str, x: Tensor) -> None:
    """Check the shape [B, T] and the integer type of ids."""
    check_tensor(name, x)
    if x.dim() != 2 or x.dtype not in INTEGERS:
        raise ValueError(
            f"`{name}` must be token ids [B, T] of int64 or int32, but is {x.dtype} of shape "
            f"{list(x.shape)}; `.long()` makes int64 of other integers"
        )


def check_positions(layout: Layout, limit: int | None, max_seq_len: int) -> None:
    """Check positions against a learned table; rows without padding are checked without reading a tensor."""
    if limit is None:
        return
    if layout.contiguous_positions and layout.valid is None:
        last = layout.end - 1
    elif not readable(layout.positions):
        return
    else:
        last = int(layout.positions.max())
        if bool((layout.positions < 0).any()):
            raise ValueError(
                "`pos` must hold positions from 0 on for a learned table, but holds negative ones"
            )
    if last >= limit:
        raise ValueError(
            f"position {last} is beyond the learned positions (`max_seq_len` = {max_seq_len}): give at most "
            f"{max_seq_len} tokens, or build with a relative scheme (rotary_pos_emb, alibi_pos_bias, ...)"
        )


def prefix_lengths(length: int | Tensor, x: Tensor) -> Tensor:
    """[B] or [1] long: the number of first tokens of each row of x [B, T] in its prefix."""
    given = length if isinstance(length, (int, Tensor)) else -1
    lengths = torch.as_tensor(given, device=x.device).reshape(-1)
    fits = lengths.dtype in INTEGERS and lengths.numel() in (1, x.shape[0])
    if not fits or (readable(lengths) and bool((lengths < 0).any())):
        raise ValueError(
            f"`prefix_attn_len` must be a whole number from 0 on, or one per row, but is {length!r}"
        )
    return lengths
