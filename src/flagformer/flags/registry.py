"""The registry of components, with look-up by slot and by flag."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from flagformer.flags.flag import ANY, Component, Flag, Param
from flagformer.flags.slots import SLOTS


@dataclass
class Tables:
    """Components in order, by slot, by parameter and by selector; flags with a `cross_` form; from the first
    look-up on, the names of flags by their scopes, and the owners and the declaration of each flag."""

    components: list[Component] = field(default_factory=list)
    by_slot: dict[str, list[Component]] = field(default_factory=lambda: defaultdict(list))
    params: dict[str, list[tuple[Component, Param]]] = field(default_factory=lambda: defaultdict(list))
    selectors: dict[str, list[Component]] = field(default_factory=lambda: defaultdict(list))
    crossed: dict[str, None] = field(default_factory=dict)
    names: dict[frozenset[str] | None, tuple[str, ...]] = field(default_factory=dict)
    owners: dict[str, tuple[Component, ...]] = field(default_factory=dict)
    declared: dict[str, Param] = field(default_factory=dict)


class Registry:
    """An ordered collection of components."""

    def __init__(self, classes: Iterable[type] = ()) -> None:
        self._tables = Tables()
        self._source = ""
        self.fill(classes)

    def fill_from(self, module: str) -> None:
        """Set the module whose import fills the registry; it is imported at the first look-up."""
        self._source = module

    @property
    def _found(self) -> Tables:
        if self._source:
            # a second thread waits here until the first has finished the import
            import_module(self._source)
            self._source = ""
        return self._tables

    @property
    def components(self) -> list[Component]:
        """All components, in the order in which they are documented and tried."""
        return self._found.components

    def fill(self, classes: Iterable[type]) -> None:
        """Add components, in the order in which they are documented and tried."""
        for cls in classes:
            self._add(cls.component)  # type: ignore[attr-defined]

    def _add(self, item: Component) -> None:
        assert item.slot in SLOTS, f"{item.name} fills the unknown slot {item.slot!r}"
        tables = self._tables
        tables.components.append(item)
        for found in (tables.names, tables.owners, tables.declared):
            found.clear()
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
        """Return the component used when no flag selects one."""
        return next((item for item in self._found.by_slot[slot] if item.select is None), None)

    def selected_by(self, name: str) -> tuple[Component, ...]:
        return tuple(self._found.selectors.get(name, ()))

    def params_named(self, name: str) -> tuple[tuple[Component, Param], ...]:
        return tuple(self._found.params.get(name, ()))

    def names(self, scopes: Iterable[str] | None = None) -> tuple[str, ...]:
        """Return the names of all flags, in catalogue order, without cross-attention forms."""
        tables, wanted = self._found, None if scopes is None else frozenset(scopes)
        if wanted not in tables.names:
            found: dict[str, None] = {}
            for item in tables.components:
                if wanted is None or SLOTS[item.slot].scope in wanted:
                    names = [item.select or "", *(param.flag.name for param in item.params)]
                    found |= dict.fromkeys(filter(None, names))
            tables.names[wanted] = tuple(found)
        return tables.names[wanted]

    def scope(self, name: str) -> str:
        """Return the scope of a flag: that of the slot of the first component that declares it."""
        return SLOTS[self.owners(name)[0].slot].scope

    def owners(self, name: str) -> tuple[Component, ...]:
        """Return the components with this parameter, then those that the flag selects; those of a slot."""
        owners = self._found.owners
        if name not in owners:
            found = self.in_slot(name) if name in SLOTS else self._owners(name)
            owners[name] = tuple(dict.fromkeys(found))
        return owners[name]

    def _owners(self, name: str) -> Iterator[Component]:
        yield from (item for item, _ in self.params_named(name))
        yield from self.selected_by(name)

    def param(self, name: str) -> Param:
        """Return the declaration of a flag; for a pure selector a boolean with the docs of its components."""
        params = self._found.declared
        if name not in params:
            params[name] = self._param(name)
        return params[name]

    def _param(self, name: str) -> Param:
        declared = self.params_named(name)
        if declared:
            return declared[0][1]
        items = self.selected_by(name)
        doc = "; ".join(f"{item.say()}: {item.doc}" if item.when is not ANY else item.doc for item in items)
        return Param(name, Flag(name, doc), bool | None, None, required=False)

    def reaches(self, name: str, kind: str) -> bool:
        """Whether a flag or slot of attention applies to self- ("a") or cross-attention ("c")."""
        return any(item.kind in ("", kind) for item in self.owners(name))

    def crossed(self) -> Collection[str]:
        """Return the flags of attention that have a cross-attention form."""
        return self._found.crossed.keys()

    def default_value(self, name: str) -> Any:
        return self.param(name).default


# The components of the library; filled by `flagformer.catalogue`, which imports every component.
CATALOGUE = Registry()
