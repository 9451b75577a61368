"""A decode state as a cache of transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flagformer.flow import DecodeState, InterleavedDecodeState
from flagformer.interop.hugging_face.pretrained.padding import (
    cached_starts,
    check_padding,
    refuse_new_padding,
)
from flagformer.interop.hugging_face.pretrained.requirement import load_transformers

Cache: Any = load_transformers().Cache
State = DecodeState | InterleavedDecodeState
ROOM = 64  # tokens


class FlagformerCache(Cache):
    """The decode state of a model, made by its first forward, which grows with the tokens.

    Args:
        tokens: the capacity to begin with.

    Attributes:
        state: None before the first forward.
    """

    def __init__(self, tokens: int = 0) -> None:
        super().__init__(layers=[])
        self.tokens = tokens
        self.state: State | None = None

    def state_for(self, model: Any, ids: Tensor, attention_mask: Tensor | None) -> State:
        """The state with capacity for the tokens `ids` [B, T] in addition to those it holds.

        Args:
            model: a TransformerWrapper.
            attention_mask: [B, stored + T], with zeros for left padding.

        Raises:
            ValueError: for padding after a token, and for another number of rows.
        """
        rows, length = ids.shape
        if self.state is None:
            starts = cached_starts(check_padding(attention_mask, rows, length))
            size = self.tokens if self.tokens >= length else capacity(model, length)
            self.state = model.init_state(rows, size, seq_start_pos=starts)
            return self.state
        refuse_new_padding(attention_mask, self.state.length, length)
        if self.state.length + length > self.state.capacity:
            self.state = grown(model, self.state, capacity(model, self.state.length + length))
        return self.state

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of tokens stored, padding included."""
        return 0 if self.state is None else self.state.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    @property
    def batch_size(self) -> int:
        """Number of rows; -1 before the first forward."""
        return -1 if self.state is None else self.state.batch

    @property
    def is_linear(self) -> list[bool]:
        """[False]: the number of tokens stored is known."""
        return [False]

    def reset(self) -> None:
        """Remove all tokens."""
        self.state = None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Replace row i by row beam_idx[i]."""
        if self.state is not None:
            self.state.reorder(beam_idx.to(self._index_device()))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows `indices`, which may repeat."""
        if self.state is not None:
            self.state = self.state.select(indices.to(self._index_device()))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(self.state.batch).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last tokens; the number is negative, as in transformers."""
        if tokens_to_remove > 0:
            raise ValueError(
                f"`tokens_to_remove` must be negative or 0, but is {tokens_to_remove}: -2 removes two tokens"
            )
        if self.state is not None and tokens_to_remove:
            self.state.truncate(self.state.length + tokens_to_remove)

    def __bool__(self) -> bool:
        return True  # a cache without layers of transformers has length 0

    def __deepcopy__(self, memo: Any) -> FlagformerCache:
        other = FlagformerCache(self.tokens)
        if self.state is not None:
            other.state = self.state.select(list(range(self.state.batch)))
        return other

    def _index_device(self) -> torch.device:
        assert self.state is not None
        inner = self.state.inner if isinstance(self.state, InterleavedDecodeState) else self.state
        return inner.device


def capacity(model: Any, tokens: int) -> int:
    """Tokens of a state that holds `tokens`; at least 64 more where positions allow it."""
    wanted = tokens + max(ROOM, tokens // 2)
    limited = model.absolute_positions or model.num_memory_slots
    return max(tokens, min(wanted, model.max_seq_len)) if limited else wanted


def grown(model: Any, state: State, length: int) -> State:
    """A state of `length` tokens with the content of another."""
    more: State = model.init_state(state.batch, length, window=state.window, seq_start_pos=state.row_starts)
    more.restore(state.record())
    return more
