"""A state dict that is read key by key, so that what nobody asked for can be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.interop.dialect import Dialect


class SourceWeights:
    """The weights to be carried; `refused` gathers reasons, `rest` what was never taken.

    Args:
        dialect: what the stored numbers mean.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dialect: Dialect) -> None:
        self.dialect = dialect
        self._tensors, self._prefix = dict(tensors), ""
        self._taken: set[str] = set()
        self.refused: list[str] = []

    def under(self, prefix: str, dialect: Dialect | None = None) -> SourceWeights:
        """The same weights, read by keys without `prefix`; what is taken and refused is shared."""
        part = SourceWeights({}, dialect or self.dialect)
        part._tensors, part._taken, part.refused = self._tensors, self._taken, self.refused
        part._prefix = self._prefix + prefix
        return part

    def take(self, key: str) -> Tensor | None:
        """The tensor, or None with a reason noted when there is none."""
        found = self.peek(key)
        if found is None:
            self.refused.append(f"`{self._prefix}{key}` is missing")
        return found

    def peek(self, key: str) -> Tensor | None:
        """The tensor if there is one, which then counts as taken."""
        whole = self._prefix + key
        if whole not in self._tensors:
            return None
        self._taken.add(whole)
        return self._tensors[whole]

    def refuse(self, reason: str, key: str | None = None) -> None:
        """Notes why something, or the weight `key`, cannot be carried."""
        self.refused.append(reason if key is None else f"`{self._prefix}{key}`: {reason}")

    def rest(self) -> list[str]:
        return [key for key in self._tensors if key not in self._taken]


class ConvertedWeights:
    """Which tensor goes to which parameter; nothing is written before everything fits."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._pairs: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def put(self, target: Any, value: Tensor | None) -> None:
        """`value` for the parameter `target`; None when the source had none, which it has noted."""
        if value is not None:
            self._pairs[id(target)] = (target, value)

    def put_row(self, target: Any, row: int, value: Tensor | None) -> None:
        """`value` for one row of a parameter that holds one for each sublayer."""
        if value is not None:
            _, held = self._pairs.get(id(target), (target, target.detach().clone()))
            held = held.index_copy(0, torch.tensor([row], device=held.device), value[None].to(held))
            self.put(target, held)

    def multiply(self, target: Any, factor: float) -> None:
        """Multiplies what is held for `target`."""
        if id(target) in self._pairs:
            self.put(target, self._pairs[id(target)][1] * factor)

    def pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Each parameter with its value, which is a function of the weights that autograd can follow."""
        return list(self._pairs.values())

    def problems(self) -> list[str]:
        """Parameters without a value, and values of another shape."""
        missing = [
            f"`{name}` of this model gets no weights"
            for i, name in self._names.items()
            if i not in self._pairs
        ]
        wrong = [
            f"`{self._names[i]}` of this model is {list(target.shape)}, its weights are {list(value.shape)}"
            for i, (target, value) in self._pairs.items()
            if target.shape != value.shape
        ]
        return missing + wrong

    @torch.no_grad()
    def write(self) -> None:
        for target, value in self._pairs.values():
            target.copy_(value)
