"""A state dict that is read key by key, so that what nobody asked for can be named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class Source:
    """The weights to be carried; `refused` gathers reasons, `rest` what was never taken."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = dict(tensors)
        self._taken: set[str] = set()
        self.refused: list[str] = []

    def take(self, key: str) -> Tensor | None:
        """The tensor, or None with a reason noted when there is none."""
        found = self.peek(key)
        if found is None:
            self.refused.append(f"`{key}` is missing")
        return found

    def peek(self, key: str) -> Tensor | None:
        """The tensor if there is one, which then counts as taken."""
        if key not in self._tensors:
            return None
        self._taken.add(key)
        return self._tensors[key]

    def refuse(self, reason: str) -> None:
        self.refused.append(reason)

    def rest(self) -> list[str]:
        return [key for key in self._tensors if key not in self._taken]


class Carried:
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
            held[row] = value
            self.put(target, held)

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

    def write(self) -> None:
        for target, value in self._pairs.values():
            target.data.copy_(value)
