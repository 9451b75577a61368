"""Incremental reading of a text of any length: memory of past segments, a cache of the current one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import Layout, RecurrentState
from flagformer.generation import evaluating
from flagformer.inputs.segments import check_reach
from flagformer.inputs.tokens import check_ids
from flagformer.ops.home import home_of
from flagformer.sessions.saved_state import aligned, packed, unpacked
from flagformer.stack.inputs import check_row_condition, check_size
from flagformer.storage.models import refuse_other_weights, weights_digest
from flagformer.storage.tensors import load_metadata, load_tensors, save_tensors

FILE = "stream.safetensors"
STATE = "state "  # how the names of the tensors of the decode state start


class Stream:
    """Result of `model.stream(batch_size)`: `logits = stream(ids)`, for any number of tokens per call.

    A segment ends after `max_seq_len` tokens: it updates the slots, or becomes memories of tokens. Models
    with only slots use a decode state for the current segment, so that each token is read once; those with
    `max_mem_len` read the current segment again at each call. There are no gradients, and the model runs in
    eval mode.

    Args:
        model: a causal TransformerWrapper with `num_memory_slots` or `max_mem_len`.
        batch: rows B.
        condition: [B, C], the condition of all tokens, for models that read one; None: there is none.

    Attributes:
        length: number of tokens read of each row.
        mems: the memory for the current segment; None: it is the first.
    """

    def __init__(self, model: Any, batch: int, condition: Tensor | None = None) -> None:
        check_size("batch_size", batch)
        _check_model(model)
        self.model, self.batch, self.length = model, batch, 0
        if condition is not None:
            check_row_condition(condition)
        self.condition = condition
        self.mems: RecurrentState | None = None
        self._begin()

    def _begin(self) -> None:
        self._ids = torch.empty(self.batch, 0, dtype=torch.long, device=home_of(self.model)[0])
        self._outputs: list[Tensor] = []
        self._state: Any = None

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        """ids [B, n] -> logits [B, n, V], given all earlier tokens."""
        check_ids(ids, self.model.num_tokens)
        if len(ids) != self.batch:
            raise ValueError(f"`ids` must hold the {self.batch} rows of this stream, but holds {len(ids)}")
        logits, start = [], 0
        with evaluating(self.model):
            while start < ids.shape[1]:
                end = start + self.model.max_seq_len - self._ids.shape[1]
                logits.append(self.model.to_logits(self._extend(ids[:, start:end])))
                start = end
        self.length += ids.shape[1]
        return torch.cat(logits, dim=1)

    def _extend(self, new: Tensor) -> Tensor:
        """Read new tokens of the current segment; returns embeddings [B, n, D]."""
        self._ids = torch.cat([self._ids, new], dim=1)
        return self._whole(new.shape[1]) if self.model.max_mem_len else self._cached(new)

    def _cached(self, new: Tensor) -> Tensor:
        most = self.model.max_seq_len
        first = self._state is None
        if first:
            self._state = self.model.init_state(self.batch, most)
        mems = self.mems if first else None
        out = self.model(new, state=self._state, mems=mems, condition=self.condition, return_embeddings=True)
        self._outputs.append(out)
        if self._ids.shape[1] == most:
            self.mems = self.model.end_segment(self.mems, torch.cat(self._outputs, dim=1))
            self._begin()
        return out

    def _whole(self, count: int) -> Tensor:
        how = {"return_mems": True, "detach_mems": True, "return_embeddings": True}
        out, mems = self.model(self._ids, mems=self.mems, condition=self.condition, **how)
        if self._ids.shape[1] == self.model.max_seq_len:
            self.mems = mems
            self._begin()
        return out[:, -count:]

    def size_bytes(self) -> int:
        """Memory in bytes, the same after any number of segments."""
        own = sum(tensor.nbytes for tensor in (self._ids, *self._outputs))
        return own + sum(held.size_bytes() for held in (self.mems, self._state) if held is not None)

    def save(self, directory: str | Path) -> None:
        """Write model and stream; to resume: `flagformer.load(directory).stream(batch_size, directory)`.

        The resumed stream gives equal logits, bit by bit: the decode state of the segment is saved too.
        """
        self.model.save(directory)
        tensors, metadata = {"ids": self._ids, "length": torch.tensor(self.length)}, {}
        if self._state is not None:
            held, metadata["state"] = packed(self._state)
            tensors |= {STATE + name: tensor for name, tensor in held.items()}
            tensors["outputs"] = torch.cat(self._outputs, dim=1)
        if self.mems is not None:
            layout = self.mems.layout
            tensors |= {f"stream {index}": hidden for index, hidden in enumerate(self.mems.hiddens)}
            tensors |= {
                "positions": layout.positions,
                "start": torch.tensor([layout.start, layout.contiguous_positions]),
            }
            # the names in the file are those of version 0.1
            optional = {"padding": layout.valid, "slots": self.mems.slots}
            tensors |= {name: value for name, value in optional.items() if value is not None}
        metadata["of weights"] = weights_digest(directory)
        save_tensors(tensors, Path(directory) / FILE, metadata)

    def restore(self, directory: str | Path) -> None:
        """Resume a saved stream.

        Raises:
            ValueError: for a file that is missing, unreadable, or of another number of rows.
        """
        path = Path(directory) / FILE
        refuse_other_weights(path)
        tensors = aligned(load_tensors(path), home_of(self.model)[0])
        ids, text = tensors["ids"], load_metadata(path).get("state")
        if len(ids) != self.batch:
            raise ValueError(
                f"`batch_size` must be that of the stream in {directory}, {len(ids)}, but is {self.batch}"
            )
        self.mems = _memories(tensors)
        self._begin()
        if self.model.max_mem_len:
            self._ids = ids
        elif text is not None:
            held = {name.removeprefix(STATE): one for name, one in tensors.items() if name.startswith(STATE)}
            self._state, self._ids = unpacked(self.model, held, text, path), ids
            self._outputs = [tensors["outputs"]]
        elif ids.shape[1]:  # a file of version 0.1 has no state
            self(ids)
        self.length = int(tensors["length"])


def _memories(tensors: dict[str, Tensor]) -> RecurrentState | None:
    if "positions" not in tensors:
        return None
    start, contiguous = tensors["start"].tolist()
    layout = Layout(
        tensors["positions"], tensors.get("padding"), start=start, contiguous_positions=bool(contiguous)
    )
    count = sum(name.startswith("stream ") for name in tensors)
    hiddens = tuple(tensors[f"stream {index}"] for index in range(count))
    return RecurrentState(hiddens, layout, tensors.get("slots"))


def _check_model(model: Any) -> None:
    if not model.num_memory_slots and not model.max_mem_len:
        raise ValueError(
            "a stream needs a model with memory: build it with `num_memory_slots` or `max_mem_len`"
        )
    if not model.can_cache:
        raise ValueError("a stream needs causal layers, but these attend to later tokens")
    if not model.max_seq_len:
        raise ValueError("a stream needs segments of a length, but the model's `max_seq_len` is 0")
    check_reach(model, "model")
