"""What cannot go together: derived from slots and needs, or declared with its reason."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from flagformer.flags.errors import Finding
from flagformer.flags.flag import Component, Requirement
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS
from flagformer.flags.spec import Instance, Spec

# What a filler may ask of the kernel, with the sentence that says why a kernel without it cannot serve.
REASONS = {
    "learned_bias": "a learned bias needs a gradient, and the fused kernel gives none",
    "scores": "it reads the scores, which the fused kernel never forms",
}
# The same of an executor.
EXECUTION = {
    "carry": "what one sublayer hands on to another is gone when each is computed again alone",
    "stream": "it finds the stream again by taking away what was added, and nothing else may happen to it",
}
# What is asked by a filler that the user hands over and that declares nothing.
UNDECLARED = {
    "position_bias": {"learned_bias"},
    "score": {"scores"},
    "normalizer": {"scores"},
    "weight_mod": {"scores"},
    "residual": {"stream"},
    "norm_position": {"stream"},
}


def multiple_fillers(slot: str, chosen: Sequence[Component], prefix: str) -> Finding:
    """Two fillers for a slot with one place."""
    names = [f"`{prefix}{item.say()}`" for item in chosen]
    they = "both" if len(names) == 2 else "all"
    text = f"{' and '.join(names)} cannot be combined, because {they} fill `{slot}`, which has one place"
    return Finding(prefix + (chosen[0].select or slot), text)


def unmet_requirements(
    items: Iterable[Component],
    values: Mapping[str, Any],
    registry: Registry,
    prefix: str,
    faulty: Collection[str] = (),
) -> list[Finding]:
    """Declared constraints that do not hold; of `faulty` flags it is not known."""
    findings = []
    for item in items:
        for need in (_of_kind(need, item, values) for need in item.requires if need.flag not in faulty):
            value = values.get(need.flag, registry.default_value(need.flag))
            if value != need.value and bool(value or need.value):
                asked = need.say(prefix)
                text = f"`{prefix}{item.say()}` needs {asked} (it is {value!r}), because {need.reason}"
                findings.append(Finding(prefix + (item.select or item.name), text))
    return findings


def _of_kind(need: Requirement, item: Component, values: Mapping[str, Any]) -> Requirement:
    """The need of a filler of cross-attention is one of the flag's `cross_` form, where that is said."""
    cross = f"cross_{need.flag}"
    crossed = item.kind == "c" and cross in values and cross != item.select
    return replace(need, flag=cross) if crossed else need


def unread_components(
    stack: Mapping[str, Sequence[Spec | Instance]], kinds: Sequence[str], registry: Registry, prefix: str
) -> list[Finding]:
    """Fillers that only a kind of sublayer reads which the plan leaves out."""
    findings = []
    plan = stack["plan"][0].params
    order = "custom_layers" if plan.get("custom_layers") else "only_cross"
    for slot in (s.name for s in SLOTS.values() if s.read_by and s.read_by not in kinds):
        for filler in stack.get(slot, ()):
            if filler.cls is not getattr(registry.default(slot), "cls", None):
                name = prefix + declared(slot, filler).say()
                text = f"`{name}` and `{prefix}{order}` cannot be combined, because only self-attention"
                findings.append(Finding(name, f"{text} reads it, and there is none; leave `{name}` out"))
    return findings


def missing_components(
    plan: Any, values: Mapping[str, Any], registry: Registry, prefix: str
) -> list[Finding]:
    """Fillers for a kind of attention that the plan leaves out."""
    findings = []
    for item in (item for item in registry if item.kind and item.kind not in plan.kinds):
        select = str(item.select)
        value = values.get(select)
        if any(item.is_selected_by(one) for one in (value if isinstance(value, tuple) else (value,))):
            order = next((name for name in ("custom_layers", "only_cross") if values.get(name)), "")
            what = "self-attention" if item.kind == "a" else "cross-attention"
            text = f"needs {what}, and there is none" + (f" under `{prefix}{order}`" if order else "")
            way = f"; say `{prefix}cross_attend=True`, or" if item.kind == "c" and not order else ";"
            findings.append(Finding(prefix + select, f"`{prefix}{item.say()}` {text}{way} leave it out"))
    return findings


def unsupported_kernels(
    stack: Mapping[str, Sequence[Spec | Instance]], modules: Iterable[Any], prefix: str
) -> list[Finding]:
    """Fillers that ask what the executor does not honour; one that declares nothing is trusted."""
    executor = getattr(stack["executor"][0].cls, "component", None)
    if executor is None:
        return []
    distinct = {id(module): module for module in modules}.values()
    slots = [{name: stack[name] for name in ("residual", "norm_position")}, *(one.slots for one in distinct)]
    fillers = dict.fromkeys(
        declared(name, one) for slot in slots for name, many in slot.items() for one in many
    )
    return [
        Finding(
            prefix + str(executor.select),
            f"`{prefix}{executor.say()}` and `{prefix}{filler.say()}` cannot be combined, because "
            f"{EXECUTION[need]}; leave one of them out",
        )
        for filler in fillers
        for need in sorted((filler.needs & EXECUTION.keys()) - executor.supports)
    ]


def declared(slot: str, filler: Spec | Instance) -> Component:
    """What a filler says of itself; one that says nothing is taken to ask what its slot may ask."""
    known = getattr(filler.cls, "component", None)
    return known or Component(filler.cls, slot, slot, needs=frozenset(UNDECLARED.get(slot, ())))


def choose_kernel(
    asked: Component | None, readers: Iterable[Component], registry: Registry, prefix: str
) -> tuple[Component, list[Finding]]:
    """The fastest kernel that serves every need, or the demanded one with a finding where it cannot."""
    readers = tuple(readers)
    needs = frozenset[str]().union(*(item.needs for item in readers)) - EXECUTION.keys()
    if asked is None:
        return next(item for item in registry.in_slot("kernel") if needs <= item.supports), []
    findings = []
    for reader in readers:
        for need in sorted(reader.needs - asked.supports - EXECUTION.keys()):
            text = (
                f"`{prefix}{asked.say()}` and `{prefix}{reader.say()}` cannot be combined, because "
                f"{REASONS[need]}; leave `{prefix}{asked.select}` out for the fastest that serves both"
            )
            findings.append(Finding(prefix + str(asked.select), text))
    return asked, findings
