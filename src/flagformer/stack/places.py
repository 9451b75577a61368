"""The places of sublayers, for components that ask for one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

from flagformer.flags import Place, Resolved, SublayerSpec


def places_of(plan: Any) -> list[Place]:
    """Return the place of each module of a plan; tied and reordered ones have that of their first run."""
    runs = Counter(plan.kinds[module] for module in plan.order)
    seen = Counter[str]()
    layers: dict[int, int] = {}
    for module in plan.order:
        kind = plan.kinds[module]
        layers.setdefault(module, seen[kind])
        seen[kind] += 1
    return [Place(layers.get(module, 0), runs[kind]) for module, kind in enumerate(plan.kinds)]


def final_place(plan: Any) -> Place:
    """Return the place of the final norm: after all layers, of the kind that runs most often."""
    count = max(Counter(plan.kinds[module] for module in plan.order).values())
    return Place(count, count)


def placed_modules(resolved: Resolved) -> list[SublayerSpec]:
    """Return the sublayers of a stack, with their places in the components that ask for them."""
    return [placed(module, place) for module, place in zip(resolved.modules, places_of(resolved.plan))]


def placed(module: SublayerSpec, place: Place) -> SublayerSpec:
    """Return the sublayer with its place in the components that ask for it."""
    slots = {slot: tuple(choice.at(place) for choice in choices) for slot, choices in module.slots.items()}
    return replace(module, slots=slots)
