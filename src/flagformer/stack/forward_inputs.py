"""The arguments of a stack's forward, read once into one record."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from flagformer.flow import DecodeState, Layout, MaskRule, RecurrentState
from flagformer.flow.decode_state import check_prefix
from flagformer.flow.mask_rules import MaskMod
from flagformer.stack.inputs import check_context, check_window
from flagformer.stack.layouts import read_mask
from flagformer.stack.refusals import refuse_mixer_arguments


@dataclass(frozen=True)
class ForwardInputs:
    """The inputs of a stack in addition to its tokens x [B, T, D], checked.

    Attributes:
        layout: layout of x.
        rules: the mask rules of causality or a prefix, and of the user's `attn_mask`.
        window: a query attends to at most this many of the last tokens; None: all.
        prefix: [B] or [1], the number of first tokens to which all attend; None: there is no prefix.
        context: [B, S, D_context] for cross-attention; None where a decode state holds it.
        context_mask: [B, S] bool, True for tokens; None: all are.
        state: the decode state; None in a plain forward.
        memory: hidden states of earlier segments, one for each recurrent step; None: there are none.
        token_ids: [1 or B, T] long, -1 for entries without an id; None: x comes without ids.
        condition: [B, 1 or T, C]; None: there is none.
    """

    layout: Layout
    rules: tuple[MaskRule, ...]
    window: int | None
    prefix: Tensor | None
    context: Tensor | None
    context_mask: Tensor | None
    state: DecodeState | None
    memory: RecurrentState | None
    token_ids: Tensor | None = None
    condition: Tensor | None = None

    @property
    def keys(self) -> Layout:
        """Layout of the keys of self-attention."""
        return self.layout if self.memory is None else self.memory.layout.concat(self.layout)

    def of_tokens(self, token_ids: Tensor | None, condition: Tensor | None) -> ForwardInputs:
        """The same inputs with the ids and the condition of the tokens.

        Args:
            token_ids: [1 or B, T] long, of the layout; None: x comes without ids.
            condition: [B, C] or [B, T, C], of the layout, which `check_condition` accepted.
        """
        if condition is not None and condition.dim() == 2:
            condition = condition[:, None]
        return replace(self, token_ids=token_ids, condition=condition)


def read_inputs(
    layers: Any,
    batch: int,
    layout: Layout,
    state: DecodeState | None,
    memory: RecurrentState | None,
    *,
    attn_mask: Tensor | MaskMod | None,
    context: Tensor | None,
    context_mask: Tensor | None,
    prefix: Tensor | None,
    window: int | None,
) -> ForwardInputs:
    """Check the arguments of `AttentionLayers.forward`.

    Args:
        layers: the AttentionLayers that will read them.
        batch: rows B.
        layout: layout of the tokens, after those of the state or the memory.
    """
    if state is not None and state.signature != layers.cache_signature:
        raise ValueError("`state` must come from `init_state` of this model, but other layers made it")
    if memory is not None and any(one.source.value_mods for one in layers.attentions if not one.is_cross):
        text = "because a memory holds hidden states of earlier tokens and not their ids"
        raise ValueError(f"`mems` cannot be given to layers with a `value_mod`, {text}")
    refuse_mixer_arguments(layers, {"attn_mask": attn_mask, "window": window})
    if window is not None:
        check_window(window, layers.time_rule(None) is not None, state is not None)
    cached = state is not None and state.context_layout is not None
    width = layers.dims.dim_context or layers.dim
    check_context(context, context_mask, layers.has_cross, cached, width, batch)
    if state is not None and prefix is not None:
        check_prefix(prefix, state.row_starts, state.length, layout.length)
    causality = layers.time_rule(prefix)
    rules = [] if causality is None else [causality]
    if attn_mask is not None:
        if not layers.has_self:
            raise ValueError("`attn_mask` is for self-attention, but these layers have none")
        rules.append(read_mask(attn_mask, batch, layers.dims.heads, layout.length, state, memory))
    return ForwardInputs(layout, tuple(rules), window, prefix, context, context_mask, state, memory)
