"""Flags that were given and reach nothing, in the whole model or in one layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flagformer.flags.errors import Finding
from flagformer.flags.flag import Component
from flagformer.flags.names import CROSS, PER_LAYER, Reaching, canonical, is_per_layer
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS


class Used:
    """The flags that reach something.

    Attributes:
        names: as typed.
        layers: of flags with a value for each layer: name and layer.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.layers: set[tuple[str, int]] = set()

    def note(self, names: Collection[str], flags: Reaching, ordinal: int) -> None:
        """Notes the flags that the sublayer `ordinal` of a kind has used, whose names have no `cross_`."""
        self.names |= {flags.typed[name] for name in names if name in flags.typed}
        self.layers |= {(flags.typed[name], ordinal) for name in names if name in flags.each}


class Dead:
    """What is said of flags that reach nothing.

    Args:
        faulty: flags that are refused already, so that what they select is not known.
        chosen: the components that fill a slot.
        planned: whether it is known which sublayers there are.
    """

    def __init__(
        self,
        registry: Registry,
        prefix: str,
        faulty: Collection[str],
        chosen: Collection[Component],
        planned: bool,
    ) -> None:
        self.registry, self.prefix, self.faulty = registry, prefix, faulty
        self.chosen, self.planned = chosen, planned

    def findings(self, values: Mapping[str, Any], used: Used) -> list[Finding]:
        return [
            Finding(self.prefix + name, f"`{self.prefix}{name}` {text}")
            for name, value in values.items()
            if name not in self.faulty
            for text in self._texts(name, value, values, used)
        ]

    def _texts(self, name: str, value: Any, values: Mapping[str, Any], used: Used) -> Iterator[str]:
        bare = canonical(name, self.registry)
        standard = None if name in SLOTS else self.registry.default_value(bare)
        if name not in used.names:
            if (name != bare or value != standard or name in SLOTS) and self._is_known(bare, values):
                yield f"has no effect here, because {self._why(name, bare, values)}"
        elif self.planned and is_per_layer(name, value, self.registry) and name not in SLOTS:
            for layer, item in enumerate(value):
                if (name, layer) not in used.layers and item is not None and item != standard:
                    why = self._tunes(bare) or f"what fills `{self._slot(bare)}` does not read it"
                    yield (
                        f"at layer {layer} has no effect, because {why} there; "
                        f"say None at layer {layer}, but it is {item!r}"
                    )
                    return

    def _is_known(self, bare: str, values: Mapping[str, Any]) -> bool:
        """Whether nothing that is wrong elsewhere could be why a flag is not used."""
        owners = self.registry.owners(bare)
        selects = {item.select for item in owners} | {item.slot for item in owners}
        selects |= {f"{CROSS}{name}" for name in selects}
        if selects & set(self.faulty):
            return False
        if self.planned or SLOTS[owners[0].slot].scope not in PER_LAYER:
            return True
        if bare in SLOTS or bare in {item.select for item in owners}:
            return False
        return not any(self._may_be(item, values) for item in owners)

    def _may_be(self, item: Component, values: Mapping[str, Any]) -> bool:
        """Whether a component may fill its slot somewhere, whatever the plan is."""
        select = str(item.select)
        given = [values[name] for name in (select, CROSS + select) if name in values]
        each = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
        return item.select is None or any(map(item.is_selected_by, each))

    def _why(self, name: str, bare: str, values: Mapping[str, Any]) -> str:
        owners = self.registry.owners(bare)
        if bare in SLOTS:
            return f"this model has {_nowhere(owners[0], name)}"
        if owners[0].slot in values:
            return f"something else was given for `{owners[0].slot}`"
        filled = any(item.slot == owners[0].slot for item in self.chosen)
        if name == bare and filled and any(item.select is None for item in owners):
            return f"what fills `{owners[0].slot}` here does not read it; leave it out"
        if name == bare and f"{CROSS}{name}" in values:
            return f"all attention here is cross-attention, which has `{self.prefix}{CROSS}{name}`"
        if any(item.select in (None, bare) for item in owners):
            return f"this model has {_nowhere(owners[0], name)}"
        return f"{self._tunes(bare)}; set that too, or leave it out"

    def _tunes(self, bare: str) -> str:
        """What a flag tunes that is not set; empty where it tunes what stands without a flag too."""
        owners = self.registry.owners(bare)
        if any(item.select in (None, bare) for item in owners):
            return ""
        selects = sorted({f"`{self.prefix}{item.say()}`" for item in owners})
        return f"it tunes {' or '.join(selects)}, which is not set"

    def _slot(self, bare: str) -> str:
        return self.registry.owners(bare)[0].slot


def _nowhere(owner: Component, name: str) -> str:
    scope = "cross-attention" if name.startswith(CROSS) else SLOTS[owner.slot].scope
    return f"no {scope} sublayer"
