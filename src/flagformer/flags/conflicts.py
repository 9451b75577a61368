"""Invalid combinations of flags: several components for a slot, required values, missing sublayers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from flagformer.flags.errors import Finding, nearest
from flagformer.flags.flag import Component
from flagformer.flags.needs import declared
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS
from flagformer.flags.spec import Instance, Spec


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
        for need in (need for need in item.requires if need.flag not in invalid):
            value = values.get(need.flag, registry.default_value(need.flag))
            if value != need.value:
                text = f"`{prefix}{item.say()}` needs {need.say(prefix)} (it is {value!r}), because"
                findings.append(Finding(prefix + (item.select or item.name), f"{text} {need.reason}"))
    return findings


def unread_components(
    stack: Mapping[str, Sequence[Spec | Instance]], kinds: Sequence[str], registry: Registry, prefix: str
) -> list[Finding]:
    """Return a finding for each component whose only kind of sublayer is not in the plan."""
    findings = []
    plan = stack["plan"][0].params
    order = next((name for name in ("custom_layers", "mixer") if plan.get(name)), "only_cross")
    for slot in (s.name for s in SLOTS.values() if s.read_by and s.read_by not in kinds):
        for choice in stack.get(slot, ()):
            if choice.cls is not getattr(registry.default(slot), "cls", None):
                name = prefix + declared(slot, choice).say()
                text = f"`{name}` and `{prefix}{order}` cannot be combined, because only self-attention"
                findings.append(Finding(name, f"{text} uses it, and this model has none; leave `{name}` out"))
    return findings


def mixer_errors(own: Mapping[str, Any], registry: Registry, prefix: str) -> list[Finding]:
    """Return the finding for a mixer sublayer without a component, or with two.

    Args:
        own: the flags of the sublayer; `mixer` is the name that the plan gives it, or None.
    """
    name, given = own["mixer"], "sequence_mixer" in own
    known = [str(item.when) for item in registry.selected_by("mixer")]
    if given and name is not None:
        text = (
            f"`{prefix}mixer` and `{prefix}sequence_mixer` cannot be combined, because both fill the mixers"
        )
        fix = f"'m' in `{prefix}custom_layers` places mixers of your own; leave one of them out"
        return [Finding(prefix + "sequence_mixer", f"{text}; {fix}")]
    if given or name in known:
        return []
    if name is None:
        text = f"`{prefix}custom_layers` has 'm', so `{prefix}mixer` must name a mixer: {', '.join(known)}"
        return [Finding(prefix + "custom_layers", text)]
    text = f"`{prefix}mixer` must be made of {', '.join(map(repr, known))} and 'attention', but has {name!r}"
    return [Finding(prefix + "mixer", text + nearest(name, known))]


def missing_components(
    plan: Any, values: Mapping[str, Any], registry: Registry, prefix: str
) -> list[Finding]:
    """Return a finding for each selected component whose kind of attention is not in the plan."""
    findings = []
    for item in (item for item in registry if item.kind and item.kind not in plan.kinds):
        select = str(item.select)
        value = values.get(select)
        if any(item.is_selected_by(one) for one in (value if isinstance(value, tuple) else (value,))):
            order = next((name for name in ("custom_layers", "only_cross", "mixer") if values.get(name)), "")
            kind = "self-attention" if item.kind == "a" else "cross-attention"
            text = f"needs {kind}, but this model has none" + (f" (`{prefix}{order}`)" if order else "")
            fix = f"; set `{prefix}cross_attend=True`, or" if item.kind == "c" and not order else ";"
            findings.append(Finding(prefix + select, f"`{prefix}{item.say()}` {text}{fix} leave it out"))
    return findings
