"""Memory between segments: read it before a forward, compute the next one after it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from flagformer.flags import Finding, FlagError
from flagformer.flow import Layout, RecurrentState
from flagformer.flow.recurrent_state import check_combination
from flagformer.stack.layers import AttentionLayers


def refuse_slots(count: int, layers: AttentionLayers, max_seq_len: int) -> None:
    """FlagError for slots without cross-attention, or without a segment length."""
    findings = []
    if count and not layers.has_cross:
        text = (
            "`num_memory_slots` needs `cross_attend=True` (it is False), because cross-attention reads slots"
        )
        findings.append(Finding("num_memory_slots", text))
    if count and layers.dims.dim_context not in (None, layers.dim):
        text = "`num_memory_slots` and `cross_attn_dim_context` cannot be combined, because slots have width"
        findings.append(Finding("cross_attn_dim_context", f"{text} `dim`; leave the width out"))
    if count and not max_seq_len:
        text = "`max_seq_len` must be at least 1 under `num_memory_slots`, the length of a segment, but is 0"
        findings.append(Finding("max_seq_len", text))
    if findings:
        raise FlagError(findings)


def check_reach(model: Any, name: str) -> None:
    """Check that positions continue beyond the first segment, as memories of tokens do."""
    if model.max_mem_len and model.absolute_positions:
        raise ValueError(
            f"`{name}` has learned positions for {model.max_seq_len} tokens, but segments continue beyond "
            "them with `max_mem_len`: build it with relative ones such as `rotary_pos_emb=True`"
        )


def check_session(model: Any, length: Any) -> None:
    """Check that a decode state of a model with slots holds at most one segment."""
    if model.slots.count and isinstance(length, int) and length > model.max_seq_len:
        raise ValueError(
            f"`length` must be at most `max_seq_len` = {model.max_seq_len}, one segment, but is {length}: "
            "slots are updated after each segment; `model.stream(batch_size)` decodes longer texts"
        )


def read_memory(
    model: Any, batch: int, length: int, mems: Any, masks: Any, return_mems: bool, others: Mapping[str, Any]
) -> RecurrentState | None:
    """Check `mems` and `mem_masks` of a forward of [B, T] tokens; slots and hidden states of earlier tokens.

    Args:
        others: the arguments that memories may exclude.
    """
    slots, given = model.slots.read(mems, batch)
    if slots is not None:
        _check_segment(length, model.max_seq_len)
    if mems is not None or masks is not None or return_mems:
        if slots is not None and not model.max_mem_len:
            if masks is not None:
                raise ValueError(
                    "`mem_masks` is for memories of tokens (`max_mem_len`), but this model has only slots"
                )
            others = _without_state(others)
        check_combination(mems, masks, return_mems, others)
    tokens: RecurrentState | None = model.recurrence.read(given, masks, batch, return_mems and slots is None)
    if slots is None:
        return tokens
    return RecurrentState.of_slots(slots) if tokens is None else replace(tokens, slots=slots)


def cross_attention_context(
    model: Any, memory: RecurrentState | None, context: Tensor | None, mask: Tensor | None, state: Any
) -> Tensor | None:
    """The context of cross-attention: the slots if there are any, else the caller's context."""
    if memory is None or memory.slots is None:
        return context
    for name, value in (("context", context), ("context_mask", mask)):
        if value is not None:
            raise ValueError(
                f"`{name}` cannot be given: cross-attention of this model reads its memory slots "
                "(`num_memory_slots`)"
            )
    if state is not None and state.length:
        return None
    slots: Tensor = model.slots.as_context(memory.slots)
    return slots


def next_memory(
    model: Any,
    memory: RecurrentState | None,
    out: Tensor,
    hiddens: Mapping[int, Tensor],
    layout: Layout,
    detach: bool | None,
) -> RecurrentState:
    """The memory for the next segment, from the layers' `out` [B, T, D] and the inputs of their steps.

    `detach`: True: without gradient; None: only slots have one; False: all have.
    """
    earlier = of_tokens(memory)
    if memory is None or memory.slots is None:
        mems = model.recurrence.write(earlier, hiddens, layout)
    else:
        slots = model.slots.write(memory.slots, out, layout.valid)
        mems = RecurrentState.of_slots(slots)
        if model.max_mem_len:
            mems = replace(model.recurrence.write(earlier, hiddens, layout), slots=slots)
    return mems if detach is False else mems.detach(slots=detach is True)


def of_tokens(memory: RecurrentState | None) -> RecurrentState | None:
    """The memory if it holds hidden states of tokens; None: it has slots only."""
    return memory if memory is not None and memory.hiddens else None


def _without_state(others: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments that slots without memories of tokens refuse: an empty `state` is accepted."""
    state = others.get("state")
    if state is not None and state.length:
        raise ValueError(
            f"`mems` belongs to the first block of a segment, but `state` holds {state.length} tokens "
            "already: leave it out, the state holds it"
        )
    return {name: value for name, value in others.items() if name != "state"}


def _check_segment(length: int, most: int) -> None:
    if length > most:
        raise ValueError(
            f"`x` must be one segment of at most `max_seq_len` = {most} tokens, but has {length}: slots are "
            "updated after each segment; `model.stream(batch_size)` and `train_segments` read longer texts"
        )
