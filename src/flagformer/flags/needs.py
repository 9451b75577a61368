"""Needs of components, and the refusals that follow from them.

A component declares its `needs`; one that cannot serve a need declares it in `lacks`, with the reason. Two
components of one sublayer, or of the stack, are refused if one lacks a need of the other. Neither names the
flags of the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from flagformer.flags.errors import Finding
from flagformer.flags.flag import ANY, Component
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS
from flagformer.flags.spec import Instance, Spec

# Needs of a user's component that declares none, by slot.
UNDECLARED = {
    "qk_norm": {"head_keys"},
    "position_bias": {"learned_bias"},
    "score": {"scores"},
    "normalizer": {"scores"},
    "weight_mod": {"scores"},
    "residual": {"stream"},
    "norm_position": {"stream"},
    "memory": {"inserted_tokens"},
    "value_mod": {"cached_values"},
    "score_bias": {"learned_bias", "token_bias"},
}

Filled = Mapping[str, Iterable[Spec | Instance]]  # slot -> its components


def declared(slot: str, choice: Spec | Instance) -> Component:
    """Return the declaration of a component, selected by the name of its slot where a user passed it.

    A user's class without a declaration is taken to have all needs of its slot and to serve every need.
    """
    known: Component | None = getattr(choice.cls, "component", None)
    if known is None:
        return Component(choice.cls, slot, slot, needs=frozenset(UNDECLARED.get(slot, ())))
    given = isinstance(choice, Instance) or choice.slot is not None
    return replace(known, select=slot, when=ANY) if given else known


def unmet_needs(
    stack: Filled, module: Any, prefix: str, typed: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Yield a finding for each need of a component that another one lacks.

    Args:
        stack: the components of the stack or the model.
        module: a sublayer, whose components are compared with each other and with those of the stack; None:
            those of the stack alone.
        typed: the names of flags where they differ from the declared ones (`cross_` forms).
    """
    kinds = ("",) if module is None else ("", module.kind)
    slots = [pair for pair in stack.items() if SLOTS[pair[0]].read_by in kinds or module is None]
    slots += [] if module is None else module.slots.items()
    names = typed or {}
    chosen = dict.fromkeys(declared(slot, choice) for slot, choices in slots for choice in choices)
    items = [
        replace(item, select=names[str(item.select)]) if item.select in names else item for item in chosen
    ]
    for lacking in (item for item in items if item.lacks):
        for other in items:
            for need in sorted(other.needs & lacking.lacks.keys()):
                name, theirs = f"{prefix}{lacking.say()}", f"{prefix}{other.say()}"
                fix = "leave one of them out"
                if lacking.slot == "kernel":
                    fix = f"leave `{prefix}{lacking.select}` out to use the fastest kernel for both"
                text = f"`{name}` and `{theirs}` cannot be combined, because {lacking.lacks[need]}; {fix}"
                yield Finding(prefix + str(lacking.select), text)


def without_ids(flags: Mapping[str, Any], inputs: str, registry: Registry) -> list[Finding]:
    """Return a finding for each flag whose component reads token ids, in a model of other `inputs`."""
    found = []
    for item in (item for item in registry if getattr(item.cls, "reads_token_ids", False)):
        value = flags.get(str(item.select))
        if any(map(item.is_selected_by, value if isinstance(value, tuple | list) else [value])):
            text = f"`{item.select}` cannot be used here, because {inputs} have no token ids; leave it out"
            found.append(Finding(str(item.select), text))
    return found


def fastest_kernel(others: Iterable[Component], registry: Registry) -> Component:
    """Return the fastest kernel that serves the needs of all other components of a sublayer."""
    needs = frozenset[str]().union(*(item.needs for item in others))
    return next(item for item in registry.in_slot("kernel") if not needs & item.lacks.keys())
