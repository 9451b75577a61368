"""What exists: the components of the catalogue, found by slot and by flag."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from flagformer.flags.flag import Component, Flag, Param
from flagformer.flags.slots import SLOTS


@dataclass
class Tables:
    """Components in their order, by slot, by parameter and by selector; flags with a `cross_` form."""

    components: list[Component] = field(default_factory=list)
    by_slot: dict[str, list[Component]] = field(default_factory=lambda: defaultdict(list))
    params: dict[str, list[tuple[Component, Param]]] = field(default_factory=lambda: defaultdict(list))
    selectors: dict[str, list[Component]] = field(default_factory=lambda: defaultdict(list))
    crossed: dict[str, None] = field(default_factory=dict)


class Registry:
    """An ordered collection of components."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._tables = Tables()
        self._source = ""
        self.fill(classes)

    def fill_from(self, module: str) -> None:
        """Names the module whose import fills it; it is imported at the first question."""
        self._source = module

    @property
    def _found(self) -> Tables:
        if self._source:
            # imported until that is done: a second thread waits for the first one's import
            import_module(self._source)
            self._source = ""
        return self._tables

    @property
    def components(self) -> list[Component]:
        """In the order in which they are documented and tried."""
        return self._found.components

    def fill(self, classes: Iterable[type]) -> None:
        """Adds components, in the order in which they are documented and tried."""
        for cls in classes:
            self._add(cls.component)  # type: ignore[attr-defined]

    def _add(self, item: Component) -> None:
        assert item.slot in SLOTS, f"{item.name} fills the unknown slot {item.slot!r}"
        tables = self._tables
        tables.components.append(item)
        tables.by_slot[item.slot].append(item)
        if item.select is not None:
            tables.selectors[item.select].append(item)
        if SLOTS[item.slot].scope == "attention" and item.kind != "a":
            names = [item.select or "", *(param.flag.name for param in item.params)]
            tables.crossed |= dict.fromkeys(name for name in names if name.startswith("attn_"))
        for param in item.params:
            tables.params[param.flag.name].append((item, param))

    def __iter__(self) -> Iterator[Component]:
        return iter(self.components)

    def in_slot(self, slot: str) -> tuple[Component, ...]:
        return tuple(self._found.by_slot[slot])

    def default(self, slot: str) -> Component | None:
        """The filler taken when no flag selects one."""
        return next((item for item in self._found.by_slot[slot] if item.select is None), None)

    def selected_by(self, name: str) -> tuple[Component, ...]:
        return tuple(self._found.selectors.get(name, ()))

    def params_named(self, name: str) -> tuple[tuple[Component, Param], ...]:
        return tuple(self._found.params.get(name, ()))

    def names(self, scopes: Iterable[str] | None = None) -> tuple[str, ...]:
        """Every flag's name, in catalogue order, cross-attention forms not included."""
        wanted = set(scopes) if scopes is not None else None
        found: dict[str, None] = {}
        for item in self.components:
            if wanted is not None and SLOTS[item.slot].scope not in wanted:
                continue
            for name in ([item.select] if item.select else []) + [p.flag.name for p in item.params]:
                found[name] = None
        return tuple(found)

    def scope(self, name: str) -> str:
        """The scope of a flag, by the slot of the first component that declares it."""
        return SLOTS[self.owners(name)[0].slot].scope

    def owners(self, name: str) -> list[Component]:
        """The components that a flag tunes, or else those it selects; those that fill a slot."""
        if name in SLOTS:
            return list(self.in_slot(name))
        return [item for item, _ in self.params_named(name)] or list(self.selected_by(name))

    def param(self, name: str) -> Param:
        """One declaration of a flag; a pure selector gets a boolean one made of its components' docs."""
        declared = self.params_named(name)
        if declared:
            return declared[0][1]
        items = self.selected_by(name)
        doc = "; ".join(f"{item.say()}: {item.doc}" if item.when is not ... else item.doc for item in items)
        return Param(name, Flag(name, doc), bool | None, None, required=False)

    def reaches(self, name: str, kind: str) -> bool:
        """Whether a flag or slot of attention means something in self- ("a") or cross-attention ("c")."""
        return any(item.kind in ("", kind) for item in self.owners(name))

    def crossed(self) -> Collection[str]:
        """The flags of attention that have a form for cross-attention only."""
        return self._found.crossed.keys()

    def default_value(self, name: str) -> Any:
        return self.param(name).default


# What the library knows; filled from `flagformer.catalogue`, which stands above every component.
CATALOGUE = Registry()
