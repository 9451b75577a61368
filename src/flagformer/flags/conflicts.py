"""Invalid combinations of flags: derived from slots and needs, or declared with a reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagformer.flags.errors import Finding
from flagformer.flags.flag import Component, Requirement
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS
from flagformer.flags.spec import Instance, Spec

# Needs of a component that a kernel must support, each with the reason why other kernels are refused.
REASONS = {
    "learned_bias": "the fused kernel computes no gradient for a learned bias",
    "scores": "it reads the attention scores, which the fused kernel never materialises",
}
# Needs that an executor must support.
EXECUTION = {
    "carry": "values passed from one sublayer to a later one are not available when a sublayer is recomputed",
    "stream": "reversible execution recovers the residual stream by subtraction, so only sums may change it",
}
# Needs of a user's component that declares none, by slot.
UNDECLARED = {
    "position_bias": {"learned_bias"},
    "score": {"scores"},
    "normalizer": {"scores"},
    "weight_mod": {"scores"},
    "residual": {"stream"},
    "norm_position": {"stream"},
}


def multiple_components(slot: str, chosen: Sequence[Component], prefix: str) -> Finding:
    """Return the finding for several components in a slot that takes one."""
    names = [f"`{prefix}{item.say()}`" for item in chosen]
    both = "both" if len(names) == 2 else "all"
    why = f"{both} fill the slot `{slot}`, which takes one component"
    text = f"{' and '.join(names)} cannot be combined, because {why}"
    return Finding(prefix + (chosen[0].select or slot), text)


def unmet_requirements(
    items: Iterable[Component],
    values: Mapping[str, Any],
    registry: Registry,
    prefix: str,
    invalid: Collection[str] = (),
) -> list[Finding]:
    """Return a finding for each declared requirement that does not hold; `invalid` flags are not checked."""
    findings = []
    for item in items:
        for need in (_of_kind(need, item, values) for need in item.requires if need.flag not in invalid):
            value = values.get(need.flag, registry.default_value(need.flag))
            if value != need.value and bool(value or need.value):
                name = f"`{prefix}{item.say()}`"
                text = f"{name} needs {need.say(prefix)} (it is {value!r}), because {need.reason}"
                if need.value is None:
                    text = f"{name} and `{prefix}{need.flag}` cannot be combined, because {need.reason}"
                findings.append(Finding(prefix + (item.select or item.name), text))
    return findings


def _of_kind(need: Requirement, item: Component, values: Mapping[str, Any]) -> Requirement:
    """Return the requirement, on the flag's `cross_` form where the component fills cross-attention."""
    cross = f"cross_{need.flag}"
    crossed = item.kind == "c" and cross in values and cross != item.select
    return replace(need, flag=cross) if crossed else need


def unread_components(
    stack: Mapping[str, Sequence[Spec | Instance]], kinds: Sequence[str], registry: Registry, prefix: str
) -> list[Finding]:
    """Return a finding for each component whose only kind of sublayer is not in the plan."""
    findings = []
    plan = stack["plan"][0].params
    order = "custom_layers" if plan.get("custom_layers") else "only_cross"
    for slot in (s.name for s in SLOTS.values() if s.read_by and s.read_by not in kinds):
        for choice in stack.get(slot, ()):
            if choice.cls is not getattr(registry.default(slot), "cls", None):
                name = prefix + declared(slot, choice).say()
                text = f"`{name}` and `{prefix}{order}` cannot be combined, because only self-attention"
                findings.append(Finding(name, f"{text} uses it, and this model has none; leave `{name}` out"))
    return findings


def missing_components(
    plan: Any, values: Mapping[str, Any], registry: Registry, prefix: str
) -> list[Finding]:
    """Return a finding for each selected component whose kind of attention is not in the plan."""
    findings = []
    for item in (item for item in registry if item.kind and item.kind not in plan.kinds):
        select = str(item.select)
        value = values.get(select)
        if any(item.is_selected_by(one) for one in (value if isinstance(value, tuple) else (value,))):
            order = next((name for name in ("custom_layers", "only_cross") if values.get(name)), "")
            kind = "self-attention" if item.kind == "a" else "cross-attention"
            text = f"needs {kind}, but this model has none" + (f" (`{prefix}{order}`)" if order else "")
            fix = f"; set `{prefix}cross_attend=True`, or" if item.kind == "c" and not order else ";"
            findings.append(Finding(prefix + select, f"`{prefix}{item.say()}` {text}{fix} leave it out"))
    return findings


def unsupported_kernels(
    stack: Mapping[str, Sequence[Spec | Instance]], modules: Iterable[Any], prefix: str
) -> list[Finding]:
    """Return a finding for each need that the executor does not support.

    An executor without a declaration is taken to support all needs.
    """
    executor = getattr(stack["executor"][0].cls, "component", None)
    if executor is None:
        return []
    distinct = {id(module): module for module in modules}.values()
    slots = [{name: stack[name] for name in ("residual", "norm_position")}, *(one.slots for one in distinct)]
    components = dict.fromkeys(
        declared(name, one) for slot in slots for name, many in slot.items() for one in many
    )
    return [
        Finding(
            prefix + str(executor.select),
            f"`{prefix}{executor.say()}` and `{prefix}{item.say()}` cannot be combined, because "
            f"{EXECUTION[need]}; leave one of them out",
        )
        for item in components
        for need in sorted((item.needs & EXECUTION.keys()) - executor.supports)
    ]


def declared(slot: str, choice: Spec | Instance) -> Component:
    """Return the declaration of a class; without one, it is taken to have all needs of its slot."""
    known = getattr(choice.cls, "component", None)
    return known or Component(choice.cls, slot, slot, needs=frozenset(UNDECLARED.get(slot, ())))


def choose_kernel(
    requested: Component | None, others: Iterable[Component], registry: Registry, prefix: str
) -> tuple[Component, list[Finding]]:
    """Return the fastest kernel that supports every need.

    A `requested` kernel is returned as it is, with a finding for each need that it does not support.
    """
    others = tuple(others)
    needs = frozenset[str]().union(*(item.needs for item in others)) - EXECUTION.keys()
    if requested is None:
        return next(item for item in registry.in_slot("kernel") if needs <= item.supports), []
    findings = []
    for other in others:
        for need in sorted(other.needs - requested.supports - EXECUTION.keys()):
            text = (
                f"`{prefix}{requested.say()}` and `{prefix}{other.say()}` cannot be combined, because "
                f"{REASONS[need]}; leave `{prefix}{requested.select}` out to use the fastest kernel for both"
            )
            findings.append(Finding(prefix + str(requested.select), text))
    return requested, findings
