"""What users hand to a model, checked and turned into one Layout."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.flow import DecodeState, Layout
from flagformer.stack.inputs import check_padding, check_starts

INTEGERS = (torch.int64, torch.int32)


def check_ids(x: Tensor, num_tokens: int) -> None:
    """[B, T] integers within the vocabulary (the range is read on the CPU only: elsewhere it would wait)."""
    if x.dim() != 2 or x.dtype not in INTEGERS:
        raise ValueError(
            f"`x` must be token ids [B, T] of integers, but is {x.dtype} of shape {list(x.shape)}"
        )
    if x.shape[1] == 0:
        raise ValueError("`x` must hold at least one token per row, but has shape " + str(list(x.shape)))
    if x.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(value) for value in torch.aminmax(x))
    if low < 0 or high >= num_tokens:
        wrong = low if low < 0 else high
        raise ValueError(f"`x` must hold ids from 0 to {num_tokens - 1} (`num_tokens`), but holds {wrong}")


def check_positions(layout: Layout, limit: int | None, max_seq_len: int) -> None:
    """Positions that a learned table holds; rows without padding are checked without reading the tensor."""
    if limit is None:
        return
    if layout.by_place and layout.padding is None:
        last = layout.end - 1
    elif torch.compiler.is_compiling() or layout.positions.device.type != "cpu":
        return
    else:
        last = int(layout.positions.max())
    if last >= limit:
        raise ValueError(
            f"position {last} is beyond the learned positions (`max_seq_len` = {max_seq_len}): give at most "
            f"{max_seq_len} tokens, or build with a relative scheme (rotary_pos_emb, alibi_pos_bias, ...)"
        )


def layout_of(
    x: Tensor,
    state: DecodeState | None,
    *,
    mask: Tensor | None,
    seq_start_pos: Tensor | None,
    seq_lens: Any,
    pos: Tensor | None,
) -> Layout:
    """The standing of the tokens of a forward; forms that contradict each other are refused."""
    batch, length = x.shape
    given = {"mask": mask, "seq_start_pos": seq_start_pos, "seq_lens": seq_lens, "pos": pos}
    named = [f"`{name}`" for name, value in given.items() if value is not None]
    if state is not None:
        if named:
            raise ValueError(
                f"{', '.join(named)} cannot be given with `state`: say left padding to `init_state`"
            )
        return state.layout(state.length, length, x.device)
    if seq_lens is not None and len(named) > 1:
        raise ValueError(
            f"{' and '.join(named)} cannot be combined: `seq_lens` says positions and padding itself"
        )
    if seq_lens is not None:
        return Layout.packed(_lengths(seq_lens, batch, length, x.device), length)
    if seq_start_pos is not None:
        layout = Layout.left_padded(check_starts("seq_start_pos", seq_start_pos, batch), length)
    else:
        layout = Layout.plain(length, x.device)
    if mask is not None:
        layout = layout.hide(check_padding("mask", mask, batch, length))
    if pos is not None:
        layout = Layout(_positions(pos, batch, length), layout.padding, by_place=False)
    return layout


def _positions(pos: Tensor, batch: int, length: int) -> Tensor:
    if pos.dtype not in INTEGERS or tuple(pos.shape) not in ((length,), (1, length), (batch, length)):
        raise ValueError(
            f"`pos` must be integers of shape [{length}] or [{batch}, {length}], "
            f"but is {pos.dtype} of shape {list(pos.shape)}"
        )
    return pos.long().reshape(-1, length)


def _lengths(seq_lens: Any, batch: int, length: int, device: torch.device) -> Tensor:
    if isinstance(seq_lens, Tensor):
        lengths = seq_lens.to(device)
    else:
        rows = [torch.as_tensor(row, dtype=torch.long) for row in seq_lens]
        lengths = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    if lengths.dtype not in INTEGERS or lengths.dim() != 2 or lengths.shape[0] != batch:
        raise ValueError(
            f"`seq_lens` must hold one list of lengths for each of the {batch} rows, but is {seq_lens!r}"
        )
    if bool((lengths < 0).any()) or bool((lengths.sum(dim=1) > length).any()):
        raise ValueError(
            f"`seq_lens` must be lengths that sum to at most {length} in each row, but is {seq_lens!r}"
        )
    return lengths.long()
