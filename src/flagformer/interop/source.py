"""The state dict to convert, with a record of the keys that were used, and the converted weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.interop.dialect import Dialect


class SourceWeights:
    """The weights to convert; `errors` collects reasons against it, `unused` lists the keys not taken.

    Args:
        dialect: the meaning of the stored weights.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dialect: Dialect) -> None:
        self.dialect = dialect
        self._tensors, self._prefix = dict(tensors), ""
        self._taken: set[str] = set()
        self.errors: list[str] = []

    def under(self, prefix: str, dialect: Dialect | None = None) -> SourceWeights:
        """Return a view of the weights with `prefix`; taken keys and errors are shared."""
        part = SourceWeights({}, dialect or self.dialect)
        part._tensors, part._taken, part.errors = self._tensors, self._taken, self.errors
        part._prefix = self._prefix + prefix
        return part

    def take(self, key: str) -> Tensor | None:
        """Return a tensor and mark it as taken; if it is missing, add an error and return None."""
        found = self.peek(key)
        if found is None:
            self.errors.append(f"`{self._prefix}{key}` is missing")
        return found

    def peek(self, key: str) -> Tensor | None:
        """Return a tensor and mark it as taken; None if it is missing."""
        whole = self._prefix + key
        if whole not in self._tensors:
            return None
        self._taken.add(whole)
        return self._tensors[whole]

    def refuse(self, reason: str, key: str | None = None) -> None:
        """Add a reason why the model, or the weight `key`, cannot be converted."""
        self.errors.append(reason if key is None else f"`{self._prefix}{key}`: {reason}")

    def unused(self) -> list[str]:
        return [key for key in self._tensors if key not in self._taken]


class ConvertedWeights:
    """The converted tensor of each parameter; nothing is written until `write`."""

    def __init__(self, model: nn.Module) -> None:
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._pairs: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def put(self, target: Any, value: Tensor | None) -> None:
        """Set the value of the parameter `target`; None, for a missing weight, is ignored."""
        if value is not None:
            self._pairs[id(target)] = (target, value)

    def put_row(self, target: Any, row: int, value: Tensor | None) -> None:
        """Set the value of one row of a parameter with a row per sublayer."""
        if value is not None:
            _, rows = self._pairs.get(id(target), (target, target.detach().clone()))
            rows = rows.index_copy(0, torch.tensor([row], device=rows.device), value[None].to(rows))
            self.put(target, rows)

    def multiply(self, target: Any, factor: float) -> None:
        """Multiply the value of the parameter `target`."""
        if id(target) in self._pairs:
            self.put(target, self._pairs[id(target)][1] * factor)

    def pairs(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Return each parameter with its value, a differentiable function of the weights."""
        return list(self._pairs.values())

    def problems(self) -> list[str]:
        """Return the errors: parameters without a value, and values with a wrong shape."""
        missing = [
            f"`{name}` of this model has no counterpart in these weights"
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
