"""Check the inputs of a model and combine them into one Layout."""

from __future__ import annotations

from operator import index
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import DecodeState, InsertionPattern, InterleavedDecodeState, Layout
from flagformer.ops.traced import readable
from flagformer.stack.inputs import check_padding, check_starts, check_tensor

INTEGERS = (torch.int64, torch.int32)


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


def layout_of(
    x: Tensor,
    state: DecodeState | InterleavedDecodeState | None,
    *,
    mask: Tensor | None,
    seq_start_pos: Tensor | None,
    seq_lens: Any,
    pos: Tensor | None,
) -> Layout:
    """Return the layout of the tokens of a forward; refuse contradictory arguments."""
    batch, length = x.shape
    given = {"mask": mask, "seq_start_pos": seq_start_pos, "seq_lens": seq_lens, "pos": pos}
    named = [f"`{name}`" for name, value in given.items() if value is not None]
    if state is not None:
        if not isinstance(state, (DecodeState, InterleavedDecodeState)):
            raise ValueError(f"`state` must come from `init_state`, but is {type(state).__name__}")
        if named:
            raise ValueError(
                f"{', '.join(named)} cannot be given with `state`: give left padding to `init_state`"
            )
        if isinstance(state, InterleavedDecodeState) and (
            batch != state.batch or state.length + length > state.capacity
        ):
            raise ValueError(
                f"`state` holds {state.length} of {state.capacity} tokens of {state.batch} rows; "
                f"`x` with {length} more of {batch} rows does not fit: init_state(batch, length) sizes it"
            )
        return state.layout(state.length, length, x.device)
    if seq_lens is not None and len(named) > 1:
        raise ValueError(
            f"{' and '.join(named)} cannot be combined: `seq_lens` defines positions and padding"
        )
    if seq_lens is not None:
        return Layout.packed(_lengths(seq_lens, batch, length, x.device), length)
    if seq_start_pos is not None:
        layout = Layout.left_padded(check_starts("seq_start_pos", seq_start_pos, batch), length)
    else:
        layout = Layout.arange(length, x.device)
    if mask is not None:
        layout = layout.masked_by(check_padding("mask", mask, batch, length))
    if pos is not None:
        layout = Layout(_positions(pos, batch, length), layout.valid, contiguous_positions=False)
    return layout


def check_state(
    state: DecodeState | InterleavedDecodeState, pattern: InsertionPattern, prepended: int
) -> InterleavedDecodeState:
    """Check that a state has capacity for memory tokens and `prepended` embeddings."""
    capacity = state.num_prepended_capacity if isinstance(state, InterleavedDecodeState) else 0
    other = pattern != (state.pattern if isinstance(state, InterleavedDecodeState) else InsertionPattern())
    if other:
        raise ValueError("`state` must come from `init_state` of this model, but other layers made it")
    if prepended > capacity:
        raise ValueError(
            f"`state` has capacity for {capacity} prepended embeddings, but `prepend_embeds` holds "
            f"{prepended}: use init_state(..., num_prepend_embeds={prepended})"
        )
    assert isinstance(state, InterleavedDecodeState)
    if prepended and state.num_entries:
        raise ValueError(
            "`prepend_embeds` belongs to the first block of a decode state, but `state` holds "
            f"{state.length} tokens already: leave it out, the state holds it"
        )
    return state


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
