"""What stands beside the tokens of a forward, memory and prepended embeddings: checked, put in, taken out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
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
from flagformer.stack.inputs import (
    check_attention_mask,
    check_padding,
    check_size,
    check_starts,
    check_tensor,
)
from flagformer.stack.layers import AttentionLayers
from flagformer.wrappers.inputs import check_state

State = DecodeState | InterleavedDecodeState


@dataclass(frozen=True)
class PrependedEmbeds:
    """Embeddings of the caller's own, in front of the tokens.

    Attributes:
        length: P, how many.
        padding: [B, P] bool, True for real ones; None: all are.
    """

    length: int = 0
    padding: Tensor | None = None


def refuse_unread(pattern: InsertionPattern, layers: AttentionLayers) -> None:
    """FlagError for memory tokens that no layer reads."""
    if pattern.memory and not layers.num_prefix_kv["a"]:
        order = next((name for name in ("custom_layers", "only_cross") if layers.flags.get(name)), "plan")
        text = f"`num_memory_tokens` and `{order}` cannot be combined, because only self-attention reads it"
        raise FlagError([Finding("num_memory_tokens", f"{text}, and there is none; leave one of them out")])


def open_session(
    make: Callable[..., DecodeState],
    pattern: InsertionPattern,
    batch: int,
    length: int,
    starts: Tensor | None,
    prepended: int,
) -> State:
    """A decoding session with room for what stands beside `length` tokens."""
    if isinstance(prepended, bool) or not isinstance(prepended, int) or prepended < 0:
        raise ValueError(f"`num_prepend_embeds` must be a whole number of at least 0, but is {prepended!r}")
    if pattern == InsertionPattern() and not prepended:
        return make(batch, length, seq_start_pos=starts)
    check_size("batch", batch)
    check_size("length", length)
    first = None if starts is None else check_starts("seq_start_pos", starts, batch)
    return InterleavedDecodeState(
        make(batch, pattern.length_with_memory(length + prepended)), pattern, length, prepended, first
    )


def read_front(
    embeds: Tensor | None, mask: Tensor | None, batch: int, width: int, layers: AttentionLayers
) -> PrependedEmbeds:
    """`prepend_embeds` [B, P, E] and `prepend_mask` [B, P], checked."""
    if embeds is None:
        if mask is not None:
            raise ValueError("`prepend_mask` must come with the `prepend_embeds` that it masks, but is alone")
        return PrependedEmbeds()
    check_tensor("prepend_embeds", embeds)
    fits = embeds.dim() == 3 and embeds.shape[0] == batch and embeds.shape[1] and embeds.shape[2] == width
    if not fits or not embeds.is_floating_point():
        raise ValueError(
            f"`prepend_embeds` must be floating-point numbers of shape [{batch}, P, {width}], P at least 1, "
            f"but is {embeds.dtype} of shape {list(embeds.shape)}"
        )
    if not layers.num_prefix_kv["a"]:
        raise ValueError("`prepend_embeds` is read by self-attention, but these layers have none")
    length = embeds.shape[1]
    return PrependedEmbeds(
        length, None if mask is None else check_padding("prepend_mask", mask, batch, length)
    )


class NoInterleaving:
    """A forward of tokens only."""

    def __init__(self, layout: Layout, state: DecodeState | None) -> None:
        self.layout, self.state = layout, state

    def merge(self, memory: Tensor, stream: Tensor) -> Tensor:
        return stream

    def unmerge(self, woven: Tensor) -> Tensor:
        return woven

    def mask(self, given: Tensor | None, heads: int, batch: int) -> Tensor | None:
        return given

    def prefix(self, given: Tensor | None) -> Tensor | None:
        return given

    def done(self, prefix: Tensor | None) -> None:
        """The layers have run."""


class InterleavedInputs:
    """A forward with memory or prepended embeddings between tokens."""

    def __init__(
        self,
        pattern: InsertionPattern,
        tokens: Layout,
        front: PrependedEmbeds,
        state: InterleavedDecodeState | None,
    ) -> None:
        self.pattern, self.front, self.session, self.count = pattern, front, state, tokens.length
        self.state = None if state is None else state.inner
        device = tokens.positions.device
        if state is not None:
            self.weave = state.begin_block(tokens.length, front.length, front.padding, device)
        else:
            self.weave = _weave(pattern, tokens, front)
        self.layout = self.weave.layout

    def merge(self, memory: Tensor, stream: Tensor) -> Tensor:
        """[M, D] and [B, P + T, D] -> [B, L, D]."""
        return self.weave.merge(memory, stream)

    def unmerge(self, woven: Tensor) -> Tensor:
        """[B, L, D] -> [B, P + T, D]."""
        return self.weave.unmerge(woven)

    def mask(self, given: Tensor | None, heads: int, batch: int) -> Tensor | None:
        """`attn_mask` of prepended embeddings and tokens -> [1 or B, 1 or H, L, S]."""
        if given is None:
            return None
        count, device = self.front.length + self.count, self.layout.positions.device
        if self.session is None:
            held, keys = 0, self.weave.entry_index
        else:
            held, keys = (
                self.session.num_entries,
                self.session.entry_index(self.layout.end, self.front.length, device),
            )
        return self.weave.mask(check_attention_mask(given, batch, heads, count, held + count), keys)

    def prefix(self, given: Tensor | None) -> Tensor | None:
        """How many places a prefix of so many tokens takes, what stands in front of them included."""
        if given is None:
            return None
        if self.session is not None:
            self.session.read_prefix(given, self.count)
        padding = self.front.padding
        return self.pattern.length_with_memory(
            given + (self.front.length if padding is None else padding.sum(dim=1))
        )

    def done(self, prefix: Tensor | None) -> None:
        """The layers have run."""
        if self.session is not None:
            self.session.end_block(self.count, self.front.length, prefix)


def make_interleaving(
    pattern: InsertionPattern,
    tokens: Layout,
    front: PrependedEmbeds,
    state: State | None,
    layers: AttentionLayers,
) -> NoInterleaving | InterleavedInputs:
    """How the tokens of this forward stand among what is beside them."""
    if isinstance(state, DecodeState) and pattern == InsertionPattern() and not front.length:
        return NoInterleaving(tokens, state)
    if state is not None:
        woven = check_state(state, pattern, front.length)
        return InterleavedInputs(pattern, tokens, front, woven)
    if pattern == InsertionPattern() and not front.length:
        return NoInterleaving(tokens, None)
    beside = "`prepend_embeds`" if front.length else "memory tokens (`num_memory_tokens`)"
    if not tokens.contiguous_positions and layers.is_relative:
        raise ValueError(
            f"`pos` and {beside} cannot be combined in a model with relative positions, because these have "
            "none among yours: leave `pos` out, or build with absolute positions only"
        )
    if front.length and tokens.segment_ids is not None:
        raise ValueError(
            "`prepend_embeds` and `seq_lens` cannot be combined, because nothing says which of the packed "
            "sequences they belong to: give a row to each sequence"
        )
    return InterleavedInputs(pattern, tokens, front, None)


def _weave(pattern: InsertionPattern, tokens: Layout, front: PrependedEmbeds) -> Interleaving:
    if tokens.segment_ids is not None:
        return interleave_packed(pattern, tokens)
    if tokens.valid is None and front.padding is None:
        count = front.length + tokens.length
        return interleave_unpadded(pattern, 0, count, front.length, tokens.positions.device)
    real = [part for part in (front.padding, tokens.valid) if part is not None]
    parts = [
        real[0].new_ones(real[0].shape[0], length) if padding is None else padding
        for length, padding in ((front.length, front.padding), (tokens.length, tokens.valid))
    ]
    return interleave_padded(pattern, torch.cat(parts, dim=1), front.length)
