"""A choice before it exists: the class of a component and the values of its parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flagformer.flags.contracts import Place


@dataclass(frozen=True)
class Spec:
    """A frozen recipe: `spec.build(dims)` is `cls(dims, **params)`.

    Any slot of the layers takes a Spec of an unregistered class (`position_bias=Spec(MyBias, {"width": 3})`),
    so that an experiment needs no fork.
    """

    cls: type
    params: Mapping[str, Any] = field(default_factory=dict)
    place: Place | None = field(default=None, compare=False, repr=False)  # the slot that a user gave it for

    def build(self, *shapes: Any) -> Any:
        if self.place is not None:
            return self.place.build(self.cls, shapes, self.params)
        return self.cls(*shapes, **self.params)

    @property
    def name(self) -> str:
        return self.cls.__name__

    def describe(self) -> str:
        inside = ", ".join(f"{name}={value!r}" for name, value in self.params.items())
        return f"{self.name}({inside})"


@dataclass(frozen=True)
class Instance:
    """A module that exists already, given by the user to fill a slot."""

    module: Any
    params: Mapping[str, Any] = field(default_factory=dict)

    def build(self, *shapes: Any) -> Any:
        return self.module

    @property
    def cls(self) -> type:
        return type(self.module)

    @property
    def name(self) -> str:
        return self.cls.__name__

    def describe(self) -> str:
        return f"{self.name} (given)"
