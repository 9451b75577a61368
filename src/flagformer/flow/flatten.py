"""Flatten a record to its tensors and back, so that all of them can be inputs of one operator."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import fields, is_dataclass, replace
from typing import Any

from torch import Tensor


class TensorLeaf:
    """Placeholder for a tensor."""


LEAF = TensorLeaf()


def flatten(value: Any) -> tuple[Any, list[Tensor]]:
    """Return the record with a placeholder for each tensor, and the tensors in the order of its fields.

    Dataclasses, tuples, lists and dictionaries are traversed; every other value is kept.
    """
    tensors: list[Tensor] = []

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        tensors.append(leaf)
        return LEAF

    return _walk(value, take), tensors


def unflatten(value: Any, tensors: Iterator[Tensor]) -> Any:
    """Return the record with its placeholders replaced by `tensors`, in the order of `flatten`."""
    return _walk(value, lambda leaf: next(tensors) if leaf is LEAF else leaf)


def _walk(value: Any, change: Callable[[Any], Any]) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _walk(getattr(value, field.name), change) for field in fields(value)}
        return replace(value, **changed)
    if hasattr(value, "mapped"):
        return value.mapped(lambda part: _walk(part, change))
    if isinstance(value, dict):
        return {key: _walk(item, change) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_walk(item, change) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return change(value)
