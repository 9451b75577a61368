"""The flags of the catalogue: name, declaration, scope and components of each."""

from __future__ import annotations

import types
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from flagformer.flags import CATALOGUE, Component, Param
from flagformer.flags.names import CROSS
from flagformer.flags.slots import PER_LAYER


@dataclass(frozen=True)
class Entry:
    """A flag.

    Attributes:
        name: as typed, with `cross_` for the cross-attention form.
        param: its declaration: type, default and doc.
        scope: "model", "stack", "attention", "mixer", "feedforward" or "branch".
        owners: the components that it selects or configures.
    """

    name: str
    param: Param
    scope: str
    owners: tuple[Component, ...]

    @property
    def per_layer(self) -> bool:
        """Whether a tuple sets one value per layer."""
        return self.scope in PER_LAYER

    @property
    def crossed(self) -> bool:
        """Whether it has a cross-attention form."""
        return self.name in CATALOGUE.crossed()

    @property
    def is_cross_form(self) -> bool:
        """Whether it is a cross-attention form."""
        return self.name != self.param.flag.name

    @property
    def kinds(self) -> tuple[Any, ...]:
        """The types of its values; a Literal for a flag with choices."""
        choices = self.param.flag.choices
        if choices:
            plain = (Literal[tuple(value for value in choices if value is not None)],)
            return (*plain, type(None)) if None in choices else plain
        hint = self.param.type
        return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def entries(scopes: Iterable[str]) -> tuple[Entry, ...]:
    """Return the flags of the given scopes, in catalogue order, without cross-attention forms."""
    return tuple(
        Entry(name, CATALOGUE.param(name), CATALOGUE.scope(name), _owners(name))
        for name in CATALOGUE.names(scopes)
    )


def with_crossed(found: Iterable[Entry]) -> tuple[Entry, ...]:
    """Return the flags with each cross-attention form after its flag."""
    forms = []
    for entry in found:
        forms.append(entry)
        if entry.crossed:
            forms.append(Entry(CROSS + entry.name, entry.param, entry.scope, entry.owners))
    return tuple(forms)


def _owners(name: str) -> tuple[Component, ...]:
    selected = CATALOGUE.selected_by(name)
    tuned = [item for item, _ in CATALOGUE.params_named(name)]
    return tuple(dict.fromkeys([*selected, *tuned]))
