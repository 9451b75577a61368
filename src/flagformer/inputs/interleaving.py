"""Memory tokens and prepended embeddings of a forward: check them, insert them, remove them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from flagformer.flags import Finding, FlagError
from flagformer.flow import (
    DecodeState,
    InsertionPattern,
    InterleavedDecodeState,
    Interleaving,
    Layout,
    interleave_packed,
    interleave_padded,
    interleave_unpadded,
)
from flagformer.flow.bias_views import allowed_pairs
from flagformer.flow.decode_state import check_prefix
from flagformer.flow.mask_rules import MaskMod, UserMaskMod
from flagformer.stack.inputs import (
    check_attention_mask,
    check_padding,
    check_size,
    check_starts,
    check_tensor,
)
from flagformer.stack.layers import AttentionLayers

State = DecodeState | InterleavedDecodeState


@dataclass(frozen=True)
class PrependedEmbeds:
    """Embeddings that the caller prepends to the tokens.

    Attributes:
        length: their number P.
        mask: [B, P] bool, True for valid ones; None: all are valid.
    """

    length: int = 0
    mask: Tensor | None = None


def refuse_unread(pattern: InsertionPattern, layers: AttentionLayers) -> None:
    """FlagError for memory tokens that no layer reads."""
    if pattern.memory and not layers.has_self:
        order = next(
            (name for name in ("custom_layers", "only_cross", "mixer") if layers.flags.get(name)), "plan"
        )
        text = f"`num_memory_tokens` and `{order}` cannot be combined, because only self-attention reads it"
        raise FlagError([Finding("num_memory_tokens", f"{text}, and there is none; leave one of them out")])


def open_session(
    make: Callable[..., DecodeState],
    pattern: InsertionPattern,
    batch: int,
    length: int,
    row_starts: Tensor | None,
    prepended: int,
) -> State:
    """A decode state with capacity for `length` tokens, their memory tokens and prepended embeddings."""
    if isinstance(prepended, bool) or not isinstance(prepended, int) or prepended < 0:
        raise ValueError(f"`num_prepend_embeds` must be a whole number of at least 0, but is {prepended!r}")
    if pattern == InsertionPattern() and not prepended:
        return make(batch, length, seq_start_pos=row_starts)
    check_size("batch", batch)
    check_size("length", length)
    starts = None if row_starts is None else check_starts("seq_start_pos", row_starts, batch)
    return InterleavedDecodeState(
        make(batch, pattern.length_with_memory(length + prepended)), pattern, length, prepended, starts
    )


def read_prepended(
    embeds: Tensor | None, mask: Tensor | None, batch: int, width: int, layers: AttentionLayers
) -> PrependedEmbeds:
    """Check `prepend_embeds` [B, P, E] and `prepend_mask` [B, P]."""
    if embeds is None:
        if mask is not None:
            raise ValueError("`prepend_mask` needs the `prepend_embeds` that it masks, but these are None")
        return PrependedEmbeds()
    check_tensor("prepend_embeds", embeds)
    fits = embeds.dim() == 3 and embeds.shape[0] == batch and embeds.shape[1] and embeds.shape[2] == width
    if not fits or not embeds.is_floating_point():
        raise ValueError(
            f"`prepend_embeds` must be floating-point numbers of shape [{batch}, P, {width}], P at least 1, "
            f"but is {embeds.dtype} of shape {list(embeds.shape)}"
        )
    if not (layers.has_self or layers.has_mixers):
        raise ValueError("`prepend_embeds` is read by self-attention, but these layers have none")
    length = embeds.shape[1]
    return PrependedEmbeds(
        length, None if mask is None else check_padding("prepend_mask", mask, batch, length)
    )


class NoInterleaving:
    """Inputs of a forward without memory tokens and prepended embeddings."""

    def __init__(self, layout: Layout, state: DecodeState | None) -> None:
        self.layout, self.state = layout, state

    def merge(self, memory: Tensor, entries: Tensor) -> Tensor:
        return entries

    def unmerge(self, merged: Tensor) -> Tensor:
        return merged

    def spread(self, values: Tensor, fill: float) -> Tensor:
        return values

    def mask(self, attn_mask: Tensor | MaskMod | None, heads: int, batch: int) -> Tensor | MaskMod | None:
        return attn_mask

    def prefix(self, length: Tensor | None) -> Tensor | None:
        return length

    def advance(self, prefix: Tensor | None) -> None:
        """Do nothing: the layers count the block in the state."""


class InterleavedInputs:
    """Inputs of a forward with memory tokens or prepended embeddings."""

    def __init__(
        self,
        pattern: InsertionPattern,
        tokens: Layout,
        prepended: PrependedEmbeds,
        state: InterleavedDecodeState | None,
    ) -> None:
        self.pattern, self.prepended, self.outer, self.count = pattern, prepended, state, tokens.length
        self.state = None if state is None else state.inner
        device = tokens.positions.device
        if state is not None:
            self.interleaving = state.begin_block(tokens.length, prepended.length, prepended.mask, device)
        else:
            self.interleaving = _interleave(pattern, tokens, prepended)
        self.layout = self.interleaving.layout

    def merge(self, memory: Tensor, entries: Tensor) -> Tensor:
        """[M, D] and [B, P + T, D] -> [B, L, D]."""
        return self.interleaving.merge(memory, entries)

    def unmerge(self, merged: Tensor) -> Tensor:
        """[B, L, D] -> [B, P + T, D]."""
        return self.interleaving.unmerge(merged)

    def spread(self, values: Tensor, fill: float) -> Tensor:
        """[B, T] or [B, T, C], of tokens -> [B, L] or [B, L, C], with `fill` for prepended embeddings and
        memory tokens."""
        if values.dim() == 2:
            return self.spread(values[..., None], fill)[..., 0]
        memory = values.new_full((self.pattern.memory, values.shape[2]), fill)
        return self.merge(memory, F.pad(values, (0, 0, self.prepended.length, 0), value=fill))

    def mask(self, attn_mask: Tensor | MaskMod | None, heads: int, batch: int) -> Tensor | None:
        """`attn_mask` of prepended embeddings and tokens -> [1 or B, 1 or H, L, S]."""
        if attn_mask is None:
            return None
        count, device = self.prepended.length + self.count, self.layout.positions.device
        stored, kv_entry_index = 0, self.interleaving.entry_index
        if self.outer is not None:
            stored = self.outer.num_entries
            kv_entry_index = self.outer.entry_index(self.layout.end, self.prepended.length, device)
        if not isinstance(attn_mask, Tensor) and callable(attn_mask):
            rule = UserMaskMod(attn_mask, batch, heads)
            q, kv = Layout.arange(count, device, stored), Layout.arange(stored + count, device)
            found = allowed_pairs([rule], q, kv)
            assert found is not None
            attn_mask = found.expand(batch, heads, count, stored + count)
        mask = check_attention_mask(attn_mask, batch, heads, count, stored + count)
        return self.interleaving.mask(mask, kv_entry_index)

    def prefix(self, length: Tensor | None) -> Tensor | None:
        """A prefix length in tokens -> in positions, with memory tokens and prepended embeddings."""
        if length is None:
            return None
        if self.outer is not None:
            check_prefix(length, self.outer.row_starts, self.outer.length, self.count)
        mask = self.prepended.mask
        num_prepended = self.prepended.length if mask is None else mask.sum(dim=1)
        return self.pattern.length_with_memory(length + num_prepended)

    def advance(self, prefix: Tensor | None) -> None:
        """Count the block in the decode state, after the layers have run."""
        if self.outer is not None:
            self.outer.advance(self.count, self.prepended.length, prefix)


def make_interleaving(
    pattern: InsertionPattern,
    tokens: Layout,
    prepended: PrependedEmbeds,
    state: State | None,
    layers: AttentionLayers,
) -> NoInterleaving | InterleavedInputs:
    """Interleave the tokens of a forward with memory tokens and prepended embeddings, if there are any."""
    if isinstance(state, DecodeState) and pattern == InsertionPattern() and not prepended.length:
        return NoInterleaving(tokens, state)
    if state is not None:
        checked = _check_state(state, pattern, prepended.length)
        return InterleavedInputs(pattern, tokens, prepended, checked)
    if pattern == InsertionPattern() and not prepended.length:
        return NoInterleaving(tokens, None)
    inserted = "`prepend_embeds`" if prepended.length else "memory tokens (`num_memory_tokens`)"
    if not tokens.contiguous_positions and layers.is_relative:
        raise ValueError(
            f"`pos` and {inserted} cannot be combined in a model with relative positions, because `pos` has "
            "no position for them: leave `pos` out, or build with absolute positions only"
        )
    if prepended.length and tokens.segment_ids is not None:
        raise ValueError(
            "`prepend_embeds` and `seq_lens` cannot be combined, because it is undefined to which of the "
            "packed sequences they belong: give a row to each sequence"
        )
    return InterleavedInputs(pattern, tokens, prepended, None)


def _check_state(state: State, pattern: InsertionPattern, prepended: int) -> InterleavedDecodeState:
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


def _interleave(pattern: InsertionPattern, tokens: Layout, prepended: PrependedEmbeds) -> Interleaving:
    if tokens.segment_ids is not None:
        return interleave_packed(pattern, tokens)
    if tokens.valid is None and prepended.mask is None:
        count = prepended.length + tokens.length
        return interleave_unpadded(pattern, 0, count, prepended.length, tokens.positions.device)
    masks = [mask for mask in (prepended.mask, tokens.valid) if mask is not None]
    valid = [
        masks[0].new_ones(masks[0].shape[0], length) if mask is None else mask
        for length, mask in ((prepended.length, prepended.mask), (tokens.length, tokens.valid))
    ]
    return interleave_padded(pattern, torch.cat(valid, dim=1), prepended.length)
