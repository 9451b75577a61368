"""What a forward reads of the segments before it and leaves for the next: slots, and streams of tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor

from flagformer.flags import Finding, FlagError
from flagformer.flow import Layout, RecurrentState
from flagformer.flow.recurrent_state import check_combination
from flagformer.stack.layers import AttentionLayers


class IncomingMemory(NamedTuple):
    """Slots [B, M, D] that the layers read, and memories of earlier tokens; None: there are none."""

    slots: Tensor | None
    tokens: RecurrentState | None


def refuse_slots(count: int, layers: AttentionLayers, max_seq_len: int) -> None:
    """FlagError for slots that nothing reads, or no segment writes."""
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
    """Memories of tokens go on beyond the first segment, and so must positions."""
    if model.max_mem_len and model.absolute_positions:
        raise ValueError(
            f"`{name}` has learned positions for {model.max_seq_len} tokens, and segments go on beyond them "
            "with `max_mem_len`: build it with relative ones such as `rotary_pos_emb=True`"
        )


def check_session(model: Any, length: Any) -> None:
    """A decode state holds one segment of a model with slots."""
    if model.slots.count and isinstance(length, int) and length > model.max_seq_len:
        raise ValueError(
            f"`length` must be at most `max_seq_len` = {model.max_seq_len}, one segment, but is {length}: "
            "slots are written behind each segment; `model.stream(batch_size)` decodes longer texts"
        )


def read_incoming_memory(
    model: Any, x: Tensor, mems: Any, masks: Any, leaves: bool, others: Mapping[str, Any]
) -> IncomingMemory:
    """What `mems` and `mem_masks` say to a TransformerWrapper, checked; `leaves`: new ones are asked for."""
    slots, tokens = model.slots.read(mems, x.shape[0])
    if slots is not None:
        _check_segment(x.shape[1], model.max_seq_len)
    if mems is None and masks is None and not leaves:
        return IncomingMemory(slots, None)
    if slots is not None and not model.max_mem_len:
        if masks is not None:
            raise ValueError(
                "`mem_masks` is for memories of tokens (`max_mem_len`), but this model has slots alone"
            )
        others = _beside_slots(others)
    check_combination(mems, masks, leaves, others)
    return IncomingMemory(slots, model.recurrence.read(tokens, masks, x.shape[0], leaves and slots is None))


def cross_attention_context(
    model: Any, past: IncomingMemory, context: Tensor | None, mask: Tensor | None, state: Any
) -> Any:
    """What cross-attention reads: slots where there are any, else what the caller gives."""
    if past.slots is None:
        return context
    for name, value in (("context", context), ("context_mask", mask)):
        if value is not None:
            raise ValueError(
                f"`{name}` cannot be given: cross-attention of this model reads its memory slots "
                "(`num_memory_slots`)"
            )
    return model.slots.as_context(past.slots) if state is None or not state.length else None


def next_memory(
    model: Any,
    past: IncomingMemory,
    out: Tensor,
    streams: Mapping[int, Tensor],
    layout: Layout,
    detach: bool | None,
) -> RecurrentState:
    """What the next segment reads, of the layers' `out` [B, T, D] and what their steps read.

    `detach`: whether without gradient; None: that of the slots stays.
    """
    if past.slots is None:
        left = model.recurrence.write(past.tokens, streams, layout)
    else:
        slots = model.slots.write(past.slots, out, layout.valid)
        left = RecurrentState.of_slots(slots)
        if model.max_mem_len:
            left = replace(model.recurrence.write(past.tokens, streams, layout), slots=slots)
    return left if detach is False else left.detach(slots=detach is True)


def _beside_slots(others: Mapping[str, Any]) -> dict[str, Any]:
    """What slots without memories of tokens leave to be refused: a session may begin with them."""
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
            "written behind each segment; `model.stream(batch_size)` and `train_segments` read longer texts"
        )
