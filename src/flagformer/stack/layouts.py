"""The layout of the tokens of a forward, and the user's attention mask over them and cached tokens."""

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
    mems: RecurrentState | None,
) -> Layout:
    """Return the layout of x [B, T, D], after the tokens of a decode state or of XL memories."""
    batch, length = x.shape[:2]
    if state is not None:
        return state.layout(state.length, length, x.device)
    layout = Layout.arange(length, x.device)
    if starts is not None:
        layout = Layout.left_padded(check_starts("seq_start_pos", starts, batch), length)
    if mask is not None:
        layout = layout.masked_by(check_padding("mask", mask, batch, length))
    return layout if mems is None else mems.shift_layout(layout)


def read_mask(
    mask: Tensor, batch: int, heads: int, length: int, state: DecodeState | None, mems: RecurrentState | None
) -> DenseMask:
    """Return `attn_mask` over all S keys, with those of a decode state or of XL memories.

    With memories the mask may also be [.., T, T], for the tokens only; all memories are then allowed.
    """
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
