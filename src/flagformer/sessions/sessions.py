"""Methods of a model for decode states, streams and segments."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.embedding import Memory
from flagformer.flow import DecodeState, InterleavedDecodeState, Layout
from flagformer.flow.recurrent_state import RecurrentState
from flagformer.inputs.interleaving import open_session
from flagformer.inputs.segments import check_session, next_memory
from flagformer.ops.borrow import borrow
from flagformer.ops.home import home_of
from flagformer.ops.sharded import as_forward, gather_with, is_sharded
from flagformer.sessions.saved_state import StateFiles
from flagformer.sessions.stream import Stream
from flagformer.stack.layers import AttentionLayers
from flagformer.stack.whole import Whole


class Sessions(StateFiles, Whole):
    """Base of `TransformerWrapper` that makes decode states, ends segments and may share a token embedding.

    Attributes:
        token_emb_owner: the model that owns `token_emb`; None: this one.
    """

    token_emb_owner: Sessions | None = None
    attn_layers: AttentionLayers
    memory: Memory
    slots: Any  # a SlotMemory

    @property
    def token_emb(self) -> nn.Module:
        """The token embedding. That of another model is looked up at each call, so that an adapter that
        replaces it, such as PEFT's, is used here too."""
        own = self._modules.get("token_emb")
        if own is not None:
            return own
        if self.token_emb_owner is None:
            raise AttributeError("token_emb")
        embedding = self.token_emb_owner.token_emb
        gather_with(self.token_emb_owner, embedding)
        return embedding

    def share_token_emb(self, reader: Sessions) -> None:
        """Share the embedding of `reader` and make it a submodule of this model."""
        self.add_module("token_emb", reader.token_emb)
        del reader._modules["token_emb"]
        borrow(reader, {"token_emb_owner": self})

    @as_forward
    def initial_slots(self, batch: int) -> Tensor | None:
        """[B, M, D], the memory slots before the first segment; None for a model without slots."""
        slots, _ = self.slots.read(None, batch)
        return slots

    @as_forward
    def end_segment(self, mems: RecurrentState | None, out: Tensor) -> RecurrentState:
        """Return the memory after a segment, from `mems` before it and the layers' `out` [B, T, D]."""
        slots, _ = self.slots.read(mems, len(out))
        layout = Layout.arange(out.shape[1], out.device)
        return next_memory(self, RecurrentState.of_slots(slots), out, {}, layout, True)

    def stream(
        self, batch_size: int, directory: str | Path | None = None, *, condition: Tensor | None = None
    ) -> Stream:
        """Return a stream over any number of segments, new or from a directory that `Stream.save` wrote.

        `condition`: [B, C], that of all tokens, for models that read one; it is not saved.
        """
        stream = Stream(self, batch_size, condition)
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
        if device.type != "meta" and torch.is_autocast_enabled(device.type):
            dtype = torch.get_autocast_dtype(device.type)
        make = partial(self.attn_layers.init_state, window=window, device=device, dtype=dtype)
        return open_session(make, self.memory.pattern, batch, length, seq_start_pos, num_prepend_embeds)
