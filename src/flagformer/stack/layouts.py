"""Where the tokens of a forward stand, and what a user's own mask says of them and of earlier ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flagformer.flow import DecodeState, DenseMask, Layout, RecurrentState
from flagformer.stack.inputs import check_attention_mask, check_padding, check_starts, check_tensor


def make_layout(
    x: Tensor,
    mask: Tensor | None,
    starts: Tensor | None,
    state: DecodeState | None,
    held: RecurrentState | None,
) -> Layout:
    """The layout of x [B, T, D], behind what a state or memories hold."""
    batch, length = x.shape[:2]
    if state is not None:
        return state.layout(state.length, length, x.device)
    layout = Layout.arange(length, x.device)
    if starts is not None:
        layout = Layout.left_padded(check_starts("seq_start_pos", starts, batch), length)
    if mask is not None:
        layout = layout.masked_by(check_padding("mask", mask, batch, length))
    return layout if held is None else held.shift_layout(layout)


def read_mask(
    mask: Tensor, batch: int, heads: int, length: int, state: DecodeState | None, held: RecurrentState | None
) -> DenseMask:
    """What `attn_mask` says of S keys, with those that a state or memories hold.

    With memories it may also speak of the tokens alone, [.., T, T]: then it leaves memories in sight.
    """
    check_tensor("attn_mask", mask)
    if state is not None:
        return DenseMask(check_attention_mask(mask, batch, heads, length, state.length + length))
    if held is None:
        return DenseMask(check_attention_mask(mask, batch, heads, length, length))
    if mask.shape[-1:] == (length,):
        given = F.pad(check_attention_mask(mask, batch, heads, length, length), (held.length, 0), value=True)
    else:
        given = check_attention_mask(mask, batch, heads, length, held.length + length)
    return DenseMask(given, held.layout.start)
