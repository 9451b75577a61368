"""Methods of a model for decode states, streams and segments."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.embedding import Memory
from flagformer.flow import DecodeState, InterleavedDecodeState, Layout
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.inputs.interleaving import open_session
from flagformer.inputs.segments import IncomingMemory, check_session, next_memory
from flagformer.inputs.token_reader import TokenReader
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_forward, is_sharded
from flagformer.sessions.stream import Stream
from flagformer.stack.layers import AttentionLayers


class Sessions(TokenReader):
    """Base of `TransformerWrapper` that makes decode states and ends segments."""

    attn_layers: AttentionLayers
    memory: Memory
    slots: Any  # a SlotMemory

    @as_forward
    def initial_slots(self, batch: int) -> Tensor | None:
        """[B, M, D], the memory slots before the first segment; None for a model without slots."""
        slots, _ = self.slots.read(None, batch)
        return slots

    @as_forward
    def end_segment(self, mems: RecurrentState | None, out: Tensor) -> RecurrentState:
        """Return the memory after a segment, from `mems` before it and the layers' `out` [B, T, D]."""
        slots, _ = self.slots.read(mems, len(out))
        return next_memory(
            self, IncomingMemory(slots, None), out, {}, Layout.arange(out.shape[1], out.device), True
        )

    def stream(self, batch_size: int, directory: str | Path | None = None) -> Stream:
        """Return a stream over any number of segments, new or from a directory that `Stream.save` wrote."""
        stream = Stream(self, batch_size)
        if directory is not None:
            stream.restore(directory)
        return stream

    @as_forward
    def init_state(
        self,
        batch: int,
        length: int,
        *,
        window: int | None = None,
        seq_start_pos: Tensor | None = None,
        num_prepend_embeds: int = 0,
    ) -> DecodeState | InterleavedDecodeState:
        """Return a preallocated decode state for `batch` rows of at most `length` tokens.

        Args:
            window: every query attends to at most this many of the last tokens; None: all. Memory tokens and
                prepended embeddings are always allowed and not counted.
            seq_start_pos: [B] the index of each left-padded row's first valid token.
            num_prepend_embeds: maximum number of `prepend_embeds`, in addition to the tokens.
        """
        check_session(self, length)
        device, dtype = home_of(self)
        if is_sharded(self):  # FSDP2's mixed precision policy sets the dtype of forwards
            dtype = self.token_emb(torch.zeros(1, 1, dtype=torch.long, device=device)).dtype
        if torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        make = partial(self.attn_layers.init_state, window=window, device=device, dtype=dtype)
        return open_session(make, self.memory.pattern, batch, length, seq_start_pos, num_prepend_embeds)
