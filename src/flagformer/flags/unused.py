"""Flags that were set and have no effect, in the whole model or in one layer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from flagformer.flags.errors import Finding
from flagformer.flags.flag import Component
from flagformer.flags.names import CROSS, SublayerFlags, canonical, is_per_layer
from flagformer.flags.registry import Registry
from flagformer.flags.slots import PER_LAYER, SLOTS


class UsedFlags:
    """The flags that have an effect.

    Attributes:
        names: as typed.
        layers: (name, layer) of flags with a value per layer.
    """

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.layers: set[tuple[str, int]] = set()

    def add(self, names: Collection[str], flags: SublayerFlags, ordinal: int) -> None:
        """Add the flags that sublayer `ordinal` of its kind used; `names` come without `cross_`."""
        self.names |= {flags.typed[name] for name in names if name in flags.typed}
        self.layers |= {(flags.typed[name], ordinal) for name in names if name in flags.per_layer}


class UnusedFlags:
    """Finds the flags without effect.

    Args:
        invalid: flags with another error; flags that depend on them are not reported.
        chosen: the components that fill a slot.
        planned: whether the order of sublayers is known.
    """

    def __init__(
        self,
        registry: Registry,
        prefix: str,
        invalid: Collection[str],
        chosen: Collection[Component],
        planned: bool,
    ) -> None:
        self.registry, self.prefix, self.invalid = registry, prefix, invalid
        self.chosen, self.planned = chosen, planned

    def findings(self, values: Mapping[str, Any], used: UsedFlags) -> list[Finding]:
        return [
            Finding(self.prefix + name, f"`{self.prefix}{name}` {text}")
            for name, value in values.items()
            if name not in self.invalid
            for text in self._texts(name, value, values, used)
        ]

    def _texts(self, name: str, value: Any, values: Mapping[str, Any], used: UsedFlags) -> Iterator[str]:
        bare = canonical(name, self.registry)
        default = None if name in SLOTS else self.registry.default_value(bare)
        if name not in used.names:
            if (name != bare or value != default or name in SLOTS) and self._is_certain(bare, values):
                yield f"has no effect here, because {self._reason(name, bare, values)}"
        elif self.planned and is_per_layer(name, value, self.registry) and name not in SLOTS:
            for layer, item in enumerate(value):
                if (name, layer) not in used.layers and item is not None and item != default:
                    reason = self._unset_selector(bare)
                    reason = reason or f"the component in the slot `{self._slot(bare)}` does not use it"
                    yield (
                        f"has no effect at layer {layer}, because {reason} there; "
                        f"set it to None at layer {layer} (it is {item!r})"
                    )
                    return

    def _is_certain(self, bare: str, values: Mapping[str, Any]) -> bool:
        """Whether no error of another flag could be the reason why a flag is unused."""
        owners = self.registry.owners(bare)
        selects = {item.select for item in owners} | {item.slot for item in owners}
        selects |= {f"{CROSS}{name}" for name in selects}
        if selects & set(self.invalid):
            return False
        if self.planned or SLOTS[owners[0].slot].scope not in PER_LAYER:
            return True
        if bare in SLOTS or bare in {item.select for item in owners}:
            return False
        return not any(self._may_be_selected(item, values) for item in owners)

    def _may_be_selected(self, item: Component, values: Mapping[str, Any]) -> bool:
        """Whether a component may fill its slot in some sublayer, whatever the plan is."""
        select = str(item.select)
        given = [values[name] for name in (select, CROSS + select) if name in values]
        each = [one for value in given for one in (value if isinstance(value, tuple) else (value,))]
        return item.select is None or any(map(item.is_selected_by, each))

    def _reason(self, name: str, bare: str, values: Mapping[str, Any]) -> str:
        owners = self.registry.owners(bare)
        if bare in SLOTS:
            return f"this model has {_no_sublayer(owners[0], name, values)}"
        slot = owners[0].slot
        if slot in values:
            return f"`{slot}` is set to a component of your own"
        filled = any(item.slot == slot for item in self.chosen)
        if name == bare and filled and any(item.select is None for item in owners):
            return f"the component in the slot `{slot}` does not use it; leave it out"
        if name == bare and f"{CROSS}{name}" in values:
            return f"all attention here is cross-attention, for which `{self.prefix}{CROSS}{name}` is set"
        if any(item.select in (None, bare) for item in owners):
            return f"this model has {_no_sublayer(owners[0], name, values)}"
        return f"{self._unset_selector(bare)}; set that too, or leave it out"

    def _unset_selector(self, bare: str) -> str:
        """Name the unset selector of the component that a flag configures; empty if it has none."""
        owners = self.registry.owners(bare)
        if any(item.select in (None, bare) for item in owners):
            return ""
        selects = sorted({f"`{self.prefix}{item.say()}`" for item in owners})
        return f"it is a parameter of {' or '.join(selects)}, which is not set"

    def _slot(self, bare: str) -> str:
        return self.registry.owners(bare)[0].slot


def _no_sublayer(owner: Component, name: str, values: Mapping[str, Any]) -> str:
    scope = "cross-attention" if name.startswith(CROSS) else SLOTS[owner.slot].scope
    why = " (`mixer`)" if scope == "attention" and values.get("mixer") else ""
    return f"no {scope} sublayer{why}"
