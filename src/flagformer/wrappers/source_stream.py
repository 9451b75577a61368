"""A source of any length, read by a Memformer as it comes: slots of whole segments, and one that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.generation import PromptLike, evaluating
from flagformer.ops.home import home_of
from flagformer.stack.inputs import check_size
from flagformer.wrappers.inputs import check_ids
from flagformer.wrappers.storage import load_tensors, refuse_other_weights, save_tensors, weights_digest
from flagformer.wrappers.stream import FILE


class SourceStream:
    """What `Memformer.stream(batch_size)` gives: `enc_out = stream(ids)`, for a few tokens or many at a time.

    A segment of `enc_max_seq_len` tokens that is whole is written into the slots when the next one begins.
    The one that grows is read again at each call, as its tokens see each other. Nothing carries gradient,
    and the model reads in eval mode.

    Args:
        model: a Memformer.
        batch: rows B.

    Attributes:
        length: tokens of each row that were read.
        mems: [B, M, D], what the segment that grows reads of those before; None: it is the first.
    """

    def __init__(self, model: Any, batch: int) -> None:
        check_size("batch_size", batch)
        self.model, self.batch, self.length = model, batch, 0
        self.mems: Tensor | None = None
        self._ids = torch.empty(batch, 0, dtype=torch.long, device=home_of(model)[0])
        self._left: Tensor | None = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """ids [B, n] -> the encoder's output [B, n, D], given all that was read before."""
        check_ids(ids, self.model.encoder.num_tokens, "ids")
        if len(ids) != self.batch:
            raise ValueError(f"`ids` must hold the {self.batch} rows of this stream, but holds {len(ids)}")
        pieces, start, most = [], 0, self.model.max_seq_len
        with evaluating(self.model):
            while start < ids.shape[1]:
                if self._ids.shape[1] == most:
                    self.mems, self._ids = self._left, self._ids[:, :0]
                part = ids[:, start : start + most - self._ids.shape[1]]
                self._ids = torch.cat([self._ids, part], dim=1)
                results = self.model(self._ids, mems=self.mems)
                pieces.append(results.enc_out[:, -part.shape[1] :])
                self._left, start = results.mem, start + part.shape[1]
        self.length += ids.shape[1]
        return torch.cat(pieces, dim=1)

    def generate(self, start_tokens: PromptLike, seq_len: int, **how: Any) -> Tensor:
        """New target tokens behind each start, as `Memformer.generate` of the last segment gives them."""
        if not self.length:
            raise ValueError("`generate` needs a source, but this stream has read nothing yet")
        return self.model.generate(self._ids, start_tokens, seq_len, mems=self.mems, **how)

    def size_bytes(self) -> int:
        """What it holds: the same after any number of segments."""
        held = [part for part in (self._ids, self.mems, self._left) if part is not None]
        return sum(part.numel() * part.element_size() for part in held)

    def save(self, directory: str | Path) -> None:
        """Writes the model and this stream: `flagformer.load(directory).stream(batch_size, directory)`."""
        self.model.save(directory)
        held = {"ids": self._ids, "length": torch.tensor(self.length)}
        held = held if self.mems is None else {**held, "slots": self.mems}
        save_tensors(held, Path(directory) / FILE, {"of weights": weights_digest(directory)})

    def restore(self, directory: str | Path) -> None:
        """Goes on where a saved stream stood.

        Raises:
            ValueError: for a file that is missing, unreadable, or of another number of rows.
        """
        refuse_other_weights(Path(directory) / FILE)
        held = load_tensors(Path(directory) / FILE, self._ids.device)
        ids = held["ids"]
        if len(ids) != self.batch:
            raise ValueError(
                f"`batch_size` must be that of the stream in {directory}, {len(ids)}, but is {self.batch}"
            )
        self.mems, self._ids = held.get("slots"), self._ids[:, :0]
        if ids.shape[1]:
            self(ids)
        self.length = int(held["length"])
