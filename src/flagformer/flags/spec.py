"""Specs: the class of a component and the values of its parameters, before it is built."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Protocol


class Builder(Protocol):
    """A slot that checks a user's component while it builds it (`flags.contracts.UserSlot`)."""

    def build(self, cls: type, shapes: tuple[Any, ...], params: Mapping[str, Any]) -> Any: ...


@dataclass(frozen=True)
class Place:
    """The position of a sublayer, for components whose constructor has a parameter `place`.

    Attributes:
        layer: index, from 0, among the sublayers of its kind (self-attention, cross-attention, feedforward),
            in the order in which they run; the first run of a tied sublayer. The final norm has `num_layers`.
        num_layers: the number of runs of sublayers of this kind.
    """

    layer: int
    num_layers: int


@lru_cache(maxsize=1024)
def asks_place(cls: Any) -> bool:
    """Whether a constructor has a parameter `place`; cached, as a signature takes 0.1 ms."""
    try:
        return "place" in inspect.signature(cls).parameters
    except (TypeError, ValueError):  # functions written in C may have no signature
        return False


@dataclass(frozen=True)
class Spec:
    """A class and its parameters: `spec.build(dims)` returns `cls(dims, **params)`.

    Every slot of the layers accepts a Spec of a class that is not registered:
    `position_bias=Spec(MyBias, {"width": 3})`.
    """

    cls: type
    params: Mapping[str, Any] = field(default_factory=dict)
    slot: Builder | None = field(default=None, compare=False, repr=False)  # set for a user's component

    def build(self, *shapes: Any) -> Any:
        if self.slot is not None:
            return self.slot.build(self.cls, shapes, self.params)
        return self.cls(*shapes, **self.params)

    def at(self, place: Place) -> Spec:
        """Return the spec of a component in a sublayer: with its `place`, if the class has that parameter."""
        if not asks_place(self.cls) or "place" in self.params:
            return self
        return replace(self, params={**self.params, "place": place})

    @property
    def name(self) -> str:
        return self.cls.__name__

    def describe(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.name}({inside})"


@dataclass(frozen=True)
class Instance:
    """A module built by the user, which fills a slot."""

    module: Any
    params: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *shapes: Any) -> Any:
        return self.module

    def at(self, place: Place) -> Instance:
        return self

    @property
    def cls(self) -> type:
        return type(self.module)

    @property
    def name(self) -> str:
        return self.cls.__name__

    def describe(self) -> str:
        return f"{self.name} (given)"
