"""The content of a decode state as tensors and numbers: for marks and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor

INTEGERS = (torch.int64, torch.int32)


@dataclass
class StateRecord:
    """Tensors by name, rows in their first dim (1 for equal rows), and whole numbers by name."""

    tensors: dict[str, Tensor]
    numbers: dict[str, int]

    def part(self, prefix: str) -> StateRecord:
        """The tensors and numbers whose names start with `prefix`, without it."""
        cut = len(prefix)
        return StateRecord(
            {name[cut:]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)},
            {name[cut:]: number for name, number in self.numbers.items() if name.startswith(prefix)},
        )

    def add(self, prefix: str, tensors: Mapping[str, Tensor | None], numbers: Mapping[str, int]) -> None:
        """Add tensors that are not None, and numbers, by their names after `prefix`."""
        self.tensors |= {prefix + name: one for name, one in tensors.items() if one is not None}
        self.numbers |= {prefix + name: number for name, number in numbers.items()}


class StateMark:
    """A point of a decode state that `rollback` returns to, made by `state.mark()`.

    Attributes:
        length: number of tokens that the state stored.
        record: copies of all that later tokens change.
    """

    def __init__(self, length: int, record: StateRecord) -> None:
        self.length, self.record = length, record


class Marks:
    """The marks of a state that are still in use and can be returned to."""

    def __init__(self) -> None:
        self._marks: WeakSet[StateMark] = WeakSet()

    def add(self, mark: StateMark) -> StateMark:
        self._marks.add(mark)
        return mark

    def check(self, mark: StateMark) -> None:
        """ValueError for a mark of another state, or one with tokens that were removed."""
        if not isinstance(mark, StateMark):
            raise ValueError(f"`mark` must be a result of `state.mark()`, but is a {type(mark).__name__}")
        if mark not in self._marks:
            raise ValueError(
                f"`mark`, at {mark.length} tokens, must be a mark of this state, whose tokens before it were "
                "not removed since: mark again after `truncate`, and before the tokens to be removed"
            )

    def drop_after(self, length: int) -> None:
        """Forget the marks of more than `length` tokens."""
        for mark in [one for one in self._marks if one.length > length]:
            self._marks.discard(mark)

    def reorder(self, index: Tensor, batch: int) -> None:
        for mark in self._marks:
            mark.record.tensors = {
                name: take_rows(one, index, batch) for name, one in mark.record.tensors.items()
            }


def take_rows(tensor: Tensor, index: Tensor, batch: int) -> Tensor:
    """The rows `index` of a tensor [B, ...], or of one [1, ...] that holds for all B rows."""
    return tensor if len(tensor) == 1 != batch else tensor.index_select(0, index)


def read_rows(rows: Tensor | Sequence[int], batch: int, device: torch.device) -> Tensor:
    """Check the row numbers of `select`; a tensor of longs.

    Raises:
        ValueError: for other values than numbers from 0 to batch - 1, or none.
    """
    index = rows if isinstance(rows, Tensor) else torch.as_tensor(list(rows))
    if index.dtype not in INTEGERS or index.dim() != 1 or not len(index):
        text = f"1 or more row numbers, but is {index.dtype} of shape {list(index.shape)}"
        raise ValueError(f"`rows` must be {text}")
    check_range("rows", index, batch)
    return index.to(device)


def check_rows(index: Tensor, batch: int) -> None:
    """Check row indices [B]."""
    if index.dtype not in INTEGERS or tuple(index.shape) != (batch,):
        text = f"{batch} row numbers, but is {index.dtype} of shape {list(index.shape)}"
        raise ValueError(f"`index` must be {text}")
    check_range("index", index, batch)


def check_range(name: str, index: Tensor, batch: int) -> None:
    if index.device.type == "cpu" and not bool(((index >= 0) & (index < batch)).all()):
        raise ValueError(f"`{name}` must hold rows from 0 to {batch - 1}, but is {index.tolist()}")
