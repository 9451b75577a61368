"""The state of one component in a decoding session: tensors of rows, which it declares."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, NamedTuple, TypeVar

from torch import Tensor

Self = TypeVar("Self", bound="LayerCache")


class Positions(NamedTuple):
    """A tensor of a cache with an entry for each cache position.

    Attributes:
        dim: the dim of the positions.
        before: number of entries in front of position 0.
        empty: the value of an entry without a token.
    """

    dim: int
    before: int = 0
    empty: float = 0.0


class LayerCache(ABC):
    """What a component keeps of the tokens read, at one execution step of one decoding session.

    A cache declares its tensors, with rows in their first dim. Reordered and selected rows, marks, sizes and
    files of a decode state follow from these declarations.

    Attributes:
        positions: the tensors with an entry for each cache position, by name. Entries are written once and
            overwritten only after a truncation; all other tensors may change with each block.
        counters: names of its attributes that are whole numbers.
    """

    positions: Mapping[str, Positions] = {}
    counters: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name, [B, ...]."""

    @abstractmethod
    def replace(self, tensors: dict[str, Tensor]) -> None:
        """Set its tensors, of any number of rows."""

    def stored(self, length: int) -> dict[str, Tensor]:
        """Its tensors, those with positions only up to cache position `length`; views."""
        found = {}
        for name, tensor in self.tensors.items():
            at = self.positions.get(name)
            found[name] = tensor if at is None else tensor.narrow(at.dim, 0, at.before + length)
        return found

    def changing(self) -> dict[str, Tensor]:
        """Copies of its tensors without positions."""
        return {name: tensor.clone() for name, tensor in self.tensors.items() if name not in self.positions}

    def restore(self, tensors: Mapping[str, Tensor], length: int) -> None:
        """Write tensors of `stored(length)` or `changing` back."""
        for name, held in self.stored(length).items():
            if name in tensors:
                held.copy_(tensors[name])

    def reorder(self, index: Tensor) -> None:
        """Replace row i by row index[i] (beam search)."""
        for tensor in self.tensors.values():
            tensor.copy_(tensor.index_select(0, index))

    def select(self: Self, index: Tensor) -> Self:
        """A cache of the rows `index`."""
        other = copy.copy(self)
        other.replace({name: tensor.index_select(0, index) for name, tensor in self.tensors.items()})
        return other

    def gather_positions(self, source: Tensor) -> None:
        """Replace cache position p of row b by position source[b, p]; -1: empty. source [B, S] long."""
        for name, (dim, before, empty) in self.positions.items():
            tensor = self.tensors[name]
            held = tensor.narrow(dim, before, source.shape[1])
            index = source.view(len(source), *[1] * (dim - 1), -1, *[1] * (tensor.dim() - dim - 1))
            whole = tensor.narrow(dim, before, tensor.shape[dim] - before)
            sizes = [*held.shape[:dim], source.shape[1], *held.shape[dim + 1 :]]
            moved = whole.gather(dim, index.clamp(min=0).expand(sizes))
            held.copy_(moved.masked_fill(index < 0, empty))

    def size_bytes(self) -> int:
        """Memory in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class ContextCache(LayerCache):
    """A cache of the context, which the first block fills: absent before, and never changed after."""

    def changing(self) -> dict[str, Tensor]:
        return self.tensors

    def restore(self, tensors: Mapping[str, Tensor], length: int) -> None:
        self.replace(dict(tensors))

    def reorder(self, index: Tensor) -> None:
        self.replace({name: tensor.index_select(0, index) for name, tensor in self.tensors.items()})
