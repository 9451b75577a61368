"""Layouts and masks of a forward, from the arguments of a user."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from flagformer.flow import (
    AttentionBias,
    DecodeState,
    DenseMask,
    Layout,
    MaskRule,
    RecurrentState,
    UserMaskMod,
)
from flagformer.flow.mask_rules import MaskMod
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
    keys = None if state is None else state.context_layout  # a session reads its context once
    if keys is None:
        assert context is not None
        batch, length = context.shape[:2]
        keys = Layout.arange(length, context.device)
        if valid is not None:
            keys = Layout(keys.positions, check_padding("context_mask", valid, batch, length))
    if state is not None:
        state.context_layout = keys
    return AttentionBias((), None, queries, keys)
