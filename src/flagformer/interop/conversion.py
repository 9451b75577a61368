"""The weights to convert, and the resulting value of each parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.interop.dialect import Dialect


class Conversion:
    """A state dict of x-transformers, and the converted value of each parameter of a model.

    It records used keys and reasons against the conversion. Nothing is written until `write`.

    Args:
        dialect: the meaning of the stored weights.
        model: the model with the parameters.
    """

    def __init__(self, tensors: Mapping[str, Tensor], dialect: Dialect, model: nn.Module) -> None:
        self.dialect, self.prefix = dialect, ""
        self.errors: list[str] = []
        self._tensors, self._taken = dict(tensors), set[str]()
        self._names = {id(p): name for name, p in model.named_parameters()}
        self._pairs: dict[int, tuple[nn.Parameter, Tensor]] = {}

    def under(self, prefix: str, dialect: Dialect | None = None) -> Conversion:
        """Return a view of the weights with `prefix`; it shares all records."""
        part = copy.copy(self)
        part.dialect, part.prefix = dialect or self.dialect, self.prefix + prefix
        return part

    def take(self, key: str) -> Tensor | None:
        """Return a tensor and mark it as taken; if it is missing, add an error and return None."""
        found = self.peek(key)
        if found is None:
            self.errors.append(f"`{self.prefix}{key}` is missing")
        return found

    def peek(self, key: str) -> Tensor | None:
        """Return a tensor and mark it as taken; None if it is missing."""
        whole = self.prefix + key
        if whole not in self._tensors:
            return None
        self._taken.add(whole)
        return self._tensors[whole]

    def refuse(self, reason: str, key: str | None = None) -> None:
        """Add a reason why the model, or the weight `key`, cannot be converted."""
        self.errors.append(reason if key is None else f"`{self.prefix}{key}`: {reason}")

    def put(self, target: Any, value: Tensor | None) -> None:
        """Set the value of the parameter `target`; None, for a missing weight, is ignored."""
        if value is not None:
            self._pairs[id(target)] = (target, value)

    def copy(self, target: Any, key: str, change: Callable[[Tensor], Tensor] = lambda value: value) -> None:
        """Set the parameter `target` to the weight `key`, after `change`."""
        value = self.take(key)
        self.put(target, None if value is None else change(value))

    def copy_module(
        self, module: nn.Module, prefix: str, change: Callable[[Tensor], Tensor] = lambda value: value
    ) -> None:
        """Set the parameters of a module with the same names in both libraries."""
        for name, parameter in module.named_parameters():
            self.copy(parameter, f"{prefix}.{name}", change)

    def copy_row(self, target: Any, row: int, key: str) -> None:
        """Set one row of a parameter with a row per sublayer."""
        value = self.take(key)
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
        """Return all reasons against the conversion: errors, unused weights, missing values, wrong shapes."""
        unused = [f"`{k}` has no counterpart in this model" for k in self._tensors if k not in self._taken]
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
        return list(dict.fromkeys(self.errors + unused + missing + wrong))

    @torch.no_grad()
    def write(self) -> None:
        """Write every value to its parameter."""
        for target, value in self._pairs.values():
            target.copy_(value)
