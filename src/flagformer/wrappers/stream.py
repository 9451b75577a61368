"""A text of any length, read as it comes: memory of whole segments, and a cache of the one that grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import Layout, RecurrentState
from flagformer.generation import evaluating
from flagformer.ops.home import home_of
from flagformer.stack.inputs import check_size
from flagformer.wrappers.inputs import check_ids
from flagformer.wrappers.segments import check_reach
from flagformer.wrappers.storage import load_tensors, refuse_other_weights, save_tensors, weights_digest

FILE = "stream.safetensors"


class Stream:
    """What `model.stream(batch_size)` gives: `logits = stream(ids)`, for a few tokens or many at a time.

    Every `max_seq_len` tokens a segment ends: it is written into the slots, or becomes memories of tokens.
    Models with slots alone keep a decode state of the segment that grows, so that each token is read once;
    those with `max_mem_len` read the growing segment again at each call. Nothing carries gradient, and the
    model reads in eval mode.

    Args:
        model: a causal TransformerWrapper with `num_memory_slots` or `max_mem_len`.
        batch: rows B.

    Attributes:
        length: tokens of each row that were read.
        mems: what the segment that grows reads of those before; None: it is the first.
    """

    def __init__(self, model: Any, batch: int) -> None:
        check_size("batch_size", batch)
        _check_model(model)
        self.model, self.batch, self.length = model, batch, 0
        self.mems: RecurrentState | None = None
        self._begin()

    def _begin(self) -> None:
        self._ids = torch.empty(self.batch, 0, dtype=torch.long, device=home_of(self.model)[0])
        self._read: list[Tensor] = []
        self._state: Any = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """ids [B, n] -> logits [B, n, V], given all that was read before."""
        check_ids(ids, self.model.num_tokens)
        if len(ids) != self.batch:
            raise ValueError(f"`ids` must hold the {self.batch} rows of this stream, but holds {len(ids)}")
        pieces, start = [], 0
        with evaluating(self.model):
            while start < ids.shape[1]:
                end = start + self.model.max_seq_len - self._ids.shape[1]
                pieces.append(self.model.to_logits(self._extend(ids[:, start:end])))
                start = end
        self.length += ids.shape[1]
        return torch.cat(pieces, dim=1)

    def _extend(self, part: Tensor) -> Tensor:
        """Reads what still fits into the segment; embeddings [B, n, D]."""
        self._ids = torch.cat([self._ids, part], dim=1)
        return self._whole(part.shape[1]) if self.model.max_mem_len else self._cached(part)

    def _cached(self, part: Tensor) -> Tensor:
        most = self.model.max_seq_len
        first = self._state is None
        if first:
            self._state = self.model.init_state(self.batch, most)
        mems = self.mems if first else None
        out = self.model(part, state=self._state, mems=mems, return_embeddings=True)
        self._read.append(out)
        if self._ids.shape[1] == most:
            self.mems = self.model.end_segment(self.mems, torch.cat(self._read, dim=1))
            self._begin()
        return out

    def _whole(self, count: int) -> Tensor:
        out, left = self.model(
            self._ids, mems=self.mems, return_mems=True, detach_mems=True, return_embeddings=True
        )
        if self._ids.shape[1] == self.model.max_seq_len:
            self.mems = left
            self._begin()
        return out[:, -count:]

    def size_bytes(self) -> int:
        """What it holds: the same after any number of segments."""
        held = [self._ids, *self._read]
        if self.mems is not None:
            held += [*self.mems.hiddens, *([] if self.mems.slots is None else [self.mems.slots])]
        own = sum(tensor.numel() * tensor.element_size() for tensor in held)
        return own + (0 if self._state is None else self._state.size_bytes())

    def save(self, directory: str | Path) -> None:
        """Writes the model and this stream: `flagformer.load(directory).stream(batch_size, directory)`."""
        self.model.save(directory)
        held = {"ids": self._ids, "length": torch.tensor(self.length)}
        if self.mems is not None:
            layout = self.mems.layout
            held |= {f"stream {place}": one for place, one in enumerate(self.mems.hiddens)}
            held |= {
                "positions": layout.positions,
                "start": torch.tensor([layout.start, layout.contiguous_positions]),
            }
            held |= {
                name: value
                for name, value in (("padding", layout.valid), ("slots", self.mems.slots))
                if value is not None
            }
        save_tensors(held, Path(directory) / FILE, {"of weights": weights_digest(directory)})

    def restore(self, directory: str | Path) -> None:
        """Goes on where a saved stream stood.

        Raises:
            ValueError: for a file that is missing, unreadable, or of another number of rows.
        """
        refuse_other_weights(Path(directory) / FILE)
        held = load_tensors(Path(directory) / FILE, home_of(self.model)[0])
        ids = held["ids"]
        if len(ids) != self.batch:
            raise ValueError(
                f"`batch_size` must be that of the stream in {directory}, {len(ids)}, but is {self.batch}"
            )
        self.mems = _memories(held)
        self._begin()
        if ids.shape[1]:
            self(ids)
        self.length = int(held["length"])


def _memories(held: dict[str, Tensor]) -> RecurrentState | None:
    if "positions" not in held:
        return None
    start, by_place = held["start"].tolist()
    layout = Layout(held["positions"], held.get("padding"), start=start, contiguous_positions=bool(by_place))
    count = sum(name.startswith("stream ") for name in held)
    streams = tuple(held[f"stream {place}"] for place in range(count))
    return RecurrentState(streams, layout, held.get("slots"))


def _check_model(model: Any) -> None:
    if not model.num_memory_slots and not model.max_mem_len:
        raise ValueError(
            "a stream needs a model with memory: build it with `num_memory_slots` or `max_mem_len`"
        )
    if not model.can_cache:
        raise ValueError("a stream needs causal layers, but these see later tokens")
    if not model.max_seq_len:
        raise ValueError("a stream needs segments of a length, but the model's `max_seq_len` is 0")
    check_reach(model, "model")
