"""Incremental reading of a source of any length by a Memformer: memory slots and the current segment."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.generation import PromptLike, evaluating
from flagformer.inputs.tokens import check_ids
from flagformer.ops.home import home_of
from flagformer.sessions.saved_state import aligned
from flagformer.sessions.stream import FILE
from flagformer.stack.inputs import check_row_condition, check_size
from flagformer.storage.models import refuse_other_weights, weights_digest
from flagformer.storage.tensors import load_tensors, save_tensors


class SourceStream:
    """Result of `Memformer.stream(batch_size)`: `enc_out = stream(ids)`, for any number of tokens per call.

    A complete segment of `enc_max_seq_len` tokens updates the slots when the next one begins. The current
    segment is read again at each call, as its tokens attend to each other. There are no gradients, and the
    model runs in eval mode.

    Args:
        model: a Memformer.
        batch: rows B.
        condition: [B, C], the condition of all tokens, for models that read one; None: there is none.

    Attributes:
        length: number of tokens read of each row.
        mems: [B, M, D], the slots for the current segment; None: it is the first.
    """

    def __init__(self, model: Any, batch: int, condition: Tensor | None = None) -> None:
        check_size("batch_size", batch)
        if condition is not None:
            check_row_condition(condition)
        self.condition = condition
        self.model, self.batch, self.length = model, batch, 0
        self.mems: Tensor | None = None
        self._ids = torch.empty(batch, 0, dtype=torch.long, device=home_of(model)[0])
        self._next_mems: Tensor | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """ids [B, n] -> the encoder's output [B, n, D], given all earlier tokens."""
        check_ids(ids, self.model.encoder.num_tokens, "ids")
        if len(ids) != self.batch:
            raise ValueError(f"`ids` must hold the {self.batch} rows of this stream, but holds {len(ids)}")
        outputs, start, most = [], 0, self.model.max_seq_len
        with evaluating(self.model):
            while start < ids.shape[1]:
                if self._ids.shape[1] == most:
                    self.mems, self._ids = self._next_mems, self._ids[:, :0]
                new = ids[:, start : start + most - self._ids.shape[1]]
                self._ids = torch.cat([self._ids, new], dim=1)
                results = self.model(self._ids, mems=self.mems, condition=self.condition)
                outputs.append(results.enc_out[:, -new.shape[1] :])
                self._next_mems, start = results.mem, start + new.shape[1]
        self.length += ids.shape[1]
        return torch.cat(outputs, dim=1)

    def generate(self, start_tokens: PromptLike, seq_len: int, **kwargs: Any) -> Tensor:
        """New target tokens after each start, as from `Memformer.generate` of the last segment."""
        if not self.length:
            raise ValueError("`generate` needs a source, but this stream has read no tokens yet")
        kwargs = {"mems": self.mems, "condition": self.condition, **kwargs}
        return self.model.generate(self._ids, start_tokens, seq_len, **kwargs)

    def size_bytes(self) -> int:
        """Memory in bytes, the same after any number of segments."""
        tensors = [tensor for tensor in (self._ids, self.mems, self._next_mems) if tensor is not None]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def save(self, directory: str | Path) -> None:
        """Write model and stream; to resume: `flagformer.load(directory).stream(batch_size, directory)`."""
        self.model.save(directory)
        tensors = {"ids": self._ids, "length": torch.tensor(self.length)}
        tensors = tensors if self.mems is None else {**tensors, "slots": self.mems}
        save_tensors(tensors, Path(directory) / FILE, {"of weights": weights_digest(directory)})

    def restore(self, directory: str | Path) -> None:
        """Resume a saved stream.

        Raises:
            ValueError: for a file that is missing, unreadable, or of another number of rows.
        """
        refuse_other_weights(Path(directory) / FILE)
        tensors = aligned(load_tensors(Path(directory) / FILE), self._ids.device)
        ids = tensors["ids"]
        if len(ids) != self.batch:
            raise ValueError(
                f"`batch_size` must be that of the stream in {directory}, {len(ids)}, but is {self.batch}"
            )
        self.mems, self._ids = tensors.get("slots"), self._ids[:, :0]
        if ids.shape[1]:
            self(ids)
        self.length = int(tensors["length"])
