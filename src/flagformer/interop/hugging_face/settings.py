"""The flags of a model in one form, with all defaults: models with equal settings compute one function."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flagformer.flags import CATALOGUE, Instance, Spec
from flagformer.interop.hugging_face.canonical import attention, feedforward, mixer, whole
from flagformer.interop.hugging_face.stacks import own_settings, stacks_of

Settings = dict[str, Any]
ABSENT: Any = object()
PREFIX = {"a": "", "c": "cross_", "f": "", "m": ""}
OF_KIND = {"a": attention, "c": attention, "f": feedforward, "m": mixer}
# Slots whose components change speed, memory or initial weights, not the function.
INERT_SLOTS = ("init", "kernel")
BRANCH = ("input_mixer", "branch")


def settings_of(model: Any) -> Settings:
    """Flag -> value, with the values of flags that are not set; one value, or a tuple by layer where they
    differ. Flags without a part in the function of inference (dropout, losses, kernels) are left out."""
    found = own_settings(model)
    for stack in stacks_of(model):
        found |= {stack.flags + name: value for name, value in _of_stack(stack.model).items()}
    return found


def _of_stack(model: Any) -> Settings:
    layers = model.attn_layers
    found: Settings = {}
    around = getattr(model, "resolved", None)  # images have no slots of the model
    for slots in (*(() if around is None else (around.stack,)), layers.resolved.stack):
        found |= _slots(slots)
    modules = layers.resolved.modules
    for kind in dict.fromkeys(module.kind for module in modules):
        own = [
            {name: specs for name, specs in module.slots.items() if name not in BRANCH}
            for module in modules
            if module.kind == kind
        ]
        rule = OF_KIND.get(kind, dict)
        by_layer = _by_layer([rule(_slots(slots) | _sizes(found)) for slots in own])
        found |= {PREFIX[kind] + name: value for name, value in by_layer.items() if name not in SIZES}
    found |= _mixers(modules)
    branches = [{name: module.slots[name] for name in BRANCH} for module in modules]
    return whole(found | _by_layer([_slots(slots) for slots in branches]))


def _mixers(modules: Sequence[Any]) -> Settings:
    """The sublayers before each feedforward, in a model with mixers: their names, joined by "+"."""
    if not any(module.kind == "m" for module in modules):
        return {}
    only = all(module.kind == "m" for module in modules)
    blocks: list[str] = []
    names: list[str] = []
    for module in modules:
        if module.kind != "f":
            names.append(_slots(module.slots).get("mixer", "mixer") if module.kind == "m" else "attention")
        if module.kind == "f" or only:
            blocks.append(" + ".join(names))
            names = []
    return {"mixer": (*blocks, *names)}


SIZES = ("dim", "heads", "attn_dim_head")


def _sizes(settings: Mapping[str, Any]) -> Settings:
    return {name: settings[name] for name in SIZES}


def _slots(slots: Mapping[str, Sequence[Spec | Instance]]) -> Settings:
    found: Settings = {}
    for slot, specs in slots.items():
        for spec in specs if slot not in INERT_SLOTS else ():
            found |= _of_component(slot, spec)
    return found


def _of_component(slot: str, spec: Spec | Instance) -> Settings:
    """The flags that select a component and set its parameters; a user's component under its slot."""
    item = getattr(spec.cls, "component", None)
    if isinstance(spec, Instance) or item is None or item.cls is not spec.cls:
        return {slot: spec.describe()}
    selected = {} if item.select is None else {item.select: True if item.when is ... else item.when}
    params = {p.flag.name: spec.params.get(p.argument, p.default) for p in item.params}
    return {**selected, **params}


def _by_layer(layers: Sequence[Mapping[str, Any]]) -> Settings:
    """One value where all layers that have a parameter agree; layers without a component have None."""
    found: Settings = {}
    for name in dict.fromkeys(name for layer in layers for name in layer):
        values = [layer.get(name, ABSENT) for layer in layers]
        if CATALOGUE.selected_by(name):
            values = [None if value is ABSENT else value for value in values]
        found[name] = collapse(value for value in values if value is not ABSENT)
        if isinstance(found[name], tuple):
            found[name] = tuple(None if value is ABSENT else value for value in values)
    return found


def collapse(values: Iterable[Any]) -> Any:
    """The value that all layers share, or a tuple of their values."""
    every = tuple(values)
    return every[0] if every and all(value == every[0] for value in every) else every


def at(flags: Mapping[str, Any], name: str, layer: int) -> Any:
    """The value of a flag in a layer; None where it is not set."""
    value = flags.get(name)
    return value[layer] if isinstance(value, tuple) else value
