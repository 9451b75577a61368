"""Layouts and masks of a forward, from the arguments of a user."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flow import (
    AttentionBias,
    DecodeState,
    DenseMask,
    InterleavedDecodeState,
    Layout,
    MaskRule,
    RecurrentState,
    UserMaskMod,
)
from flagformer.flow.mask_rules import MaskMod
from flagformer.ops.traced import readable
from flagformer.stack.inputs import (
    INTEGERS,
    check_attention_mask,
    check_capacity,
    check_padding,
    check_starts,
    check_tensor,
)


def read_layout(
    batch: int,
    length: int,
    device: torch.device,
    state: DecodeState | InterleavedDecodeState | None = None,
    memory: RecurrentState | None = None,
    *,
    mask: Tensor | None = None,
    seq_start_pos: Tensor | None = None,
    seq_lens: Any = None,
    pos: Tensor | None = None,
) -> Layout:
    """Return the layout of T tokens, after those of a decode state or of XL memories.

    Raises:
        ValueError: for arguments that cannot be combined, or of a wrong type or shape.
    """
    given = {"mask": mask, "seq_start_pos": seq_start_pos, "seq_lens": seq_lens, "pos": pos}
    named = [f"`{name}`" for name, value in given.items() if value is not None]
    if state is not None:
        if not isinstance(state, (DecodeState, InterleavedDecodeState)):
            raise ValueError(f"`state` must come from `init_state`, but is {type(state).__name__}")
        if named:
            raise ValueError(
                f"{', '.join(named)} cannot be given with `state`: give left padding to `init_state`"
            )
        check_capacity(state, batch, length)
        return state.layout(state.length, length, device)
    if seq_lens is not None and len(named) > 1:
        raise ValueError(
            f"{' and '.join(named)} cannot be combined: `seq_lens` defines positions and padding"
        )
    if seq_lens is not None:
        return Layout.packed(_lengths(seq_lens, batch, length, device), length)
    if seq_start_pos is not None:
        layout = Layout.left_padded(check_starts("seq_start_pos", seq_start_pos, batch), length)
    else:
        layout = Layout.arange(length, device)
    if mask is not None:
        layout = layout.masked_by(check_padding("mask", mask, batch, length))
    if pos is not None:
        layout = Layout(_positions(pos, batch, length), layout.valid, contiguous_positions=False)
    return layout if memory is None else memory.shift_layout(layout)


def read_mask(
    mask: Tensor | MaskMod,
    batch: int,
    heads: int,
    length: int,
    state: DecodeState | None,
    mems: RecurrentState | None,
) -> MaskRule:
    """Return `attn_mask` over all S keys, with those of a decode state or of XL memories, as a rule.

    With memories a tensor may also be [.., T, T], for the tokens only; all memories are then allowed.
    """
    if callable(mask) and not isinstance(mask, Tensor):
        return UserMaskMod(mask, batch, heads, 0 if mems is None else mems.layout.end)
    check_tensor("attn_mask", mask)
    if state is not None:
        return DenseMask(check_attention_mask(mask, batch, heads, length, state.length + length))
    if mems is None:
        return DenseMask(check_attention_mask(mask, batch, heads, length, length))
    if mask.shape[-1:] == (length,):
        given = F.pad(check_attention_mask(mask, batch, heads, length, length), (mems.length, 0), value=True)
    else:
        given = check_attention_mask(mask, batch, heads, length, mems.length + length)
    return DenseMask(given, mems.layout.start)


def context_bias(
    context: Tensor | None, queries: Layout, valid: Tensor | None, state: DecodeState | None
) -> AttentionBias:
    """The bias of cross-attention: every token attends to every valid token of the context."""
    keys = None if state is None else state.context_layout  # a decode state reads its context once
    if keys is None:
        assert context is not None
        keys = Layout(torch.arange(context.shape[1], device=context.device)[None], valid)
    return AttentionBias((), None, queries, keys)


def _positions(pos: Tensor, batch: int, length: int) -> Tensor:
    check_tensor("pos", pos)
    if pos.dtype not in INTEGERS or tuple(pos.shape) not in ((length,), (1, length), (batch, length)):
        raise ValueError(
            f"`pos` must be integers of shape [{length}] or [{batch}, {length}], "
            f"but is {pos.dtype} of shape {list(pos.shape)}"
        )
    return pos.long().reshape(-1, length)


def _lengths(seq_lens: Any, batch: int, length: int, device: torch.device) -> Tensor:
    lengths = _as_rows(seq_lens)
    if lengths is None or lengths.dim() != 2 or lengths.shape[0] != batch or not lengths.shape[1]:
        raise ValueError(
            f"`seq_lens` must hold one list of lengths for each of the {batch} rows, but is {seq_lens!r}"
        )
    if readable(lengths) and bool((lengths < 0).any() | (lengths.sum(dim=1) > length).any()):
        raise ValueError(
            f"`seq_lens` must be lengths that sum to at most {length} in each row, but is {seq_lens!r}"
        )
    return lengths.to(device).long()


def _as_rows(seq_lens: Any) -> Tensor | None:
    """[B, N] integers, with zeros after shorter lists; None for other values."""
    if isinstance(seq_lens, Tensor):
        return seq_lens if seq_lens.dtype in INTEGERS else None
    try:
        rows = [torch.tensor([index(length) for length in row], dtype=torch.long) for row in seq_lens]
    except TypeError:
        return None
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) if rows else None
