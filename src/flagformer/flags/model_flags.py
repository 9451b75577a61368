"""The flags and components among the arguments of a model's constructor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flagformer.flags.registry import CATALOGUE
from flagformer.flags.slots import open_slots

# Slots of the model that users fill by name.
MODEL_SLOTS = tuple(slot.name for slot in open_slots({"model"}))


def given_flags(typed: Mapping[str, Any]) -> dict[str, Any]:
    """The flags and the components among the arguments of a constructor.

    Flags of a slot that the user fills are left out where they select nothing.
    """
    own = {name: typed[name] for name in MODEL_SLOTS if typed[name] is not None}
    flags = {name: typed[name] for name in CATALOGUE.names({"model"}) if name in typed}
    idle = {
        name
        for name, value in flags.items()
        if value in (None, False) and {item.slot for item in CATALOGUE.owners(name)} <= own.keys()
    }
    return {name: value for name, value in flags.items() if name not in idle} | own
