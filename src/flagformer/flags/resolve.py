"""Flags -> frozen specs, once, before any tensor exists; every mistake in one FlagError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flagformer.flags import conflicts
from flagformer.flags.errors import Finding, FlagError, with_prefix
from flagformer.flags.flag import Component
from flagformer.flags.names import canonical, for_layer, read_names
from flagformer.flags.registry import Registry
from flagformer.flags.slots import LAYER_SCOPES, SLOTS
from flagformer.flags.spec import Ready, Spec

Filler = Spec | Ready
SCOPE_OF = {"a": "attention", "c": "attention", "f": "feedforward"}


@dataclass(frozen=True)
class Module:
    """One sublayer to be built: its kind ("a", "c" or "f") and the fillers of its slots."""

    kind: str
    slots: Mapping[str, tuple[Filler, ...]]


@dataclass(frozen=True)
class Resolved:
    """What flags mean: the fillers of the stack, its plan, and each sublayer's fillers."""

    flags: Mapping[str, Any]
    stack: Mapping[str, tuple[Filler, ...]]
    plan: Any
    modules: tuple[Module, ...]

    def one(self, slot: str) -> Filler | None:
        """The filler of a one-place slot of the stack; None when it is empty."""
        fillers = self.stack.get(slot, ())
        return fillers[0] if fillers else None


class _Resolution:
    """The work of one `resolve` call: findings and used names gather here."""

    def __init__(self, registry: Registry, prefix: str) -> None:
        self.registry, self.prefix = registry, prefix
        self.findings: list[Finding] = []
        self.used: set[str] = set()
        self.chosen: list[Component] = []

    def choose(self, slot: str, values: Mapping[str, Any], kind: str = "") -> list[Component]:
        """The components that the flags select for a slot, or its standard one."""
        chosen = []
        for item in self.registry.in_slot(slot):
            if item.select is None or item.select not in values:
                continue
            if not kind or item.kind in ("", kind):
                self.used.add(item.select)
                if item.is_selected_by(values[item.select]):
                    chosen.append(item)
        if len(chosen) > 1 and not SLOTS[slot].many:
            self.findings.append(conflicts.crowded(slot, chosen, self.prefix))
            chosen = chosen[:1]
        standard = self.registry.standard(slot)
        return chosen or ([standard] if standard is not None and not SLOTS[slot].many else [])

    def spec(self, item: Component, values: Mapping[str, Any]) -> Spec:
        params = {}
        for param in item.params:
            name = param.flag.name
            if name in values:
                self.used.add(name)
                params[param.argument] = values[name]
            elif param.required:
                text = f"`{self.prefix}{name}` is required: {param.flag.doc}"
                self.findings.append(Finding(self.prefix + name, text))
        self.chosen.append(item)
        return Spec(item.cls, params)

    def fill(self, slot: str, values: Mapping[str, Any], kind: str = "") -> tuple[Filler, ...]:
        if slot in values:
            self.used.add(slot)
            given = values[slot] if isinstance(values[slot], (list, tuple)) else (values[slot],)
            return tuple(self._given(slot, value) for value in given)
        return tuple(self.spec(item, values) for item in self.choose(slot, values, kind))

    def _given(self, slot: str, value: Any) -> Filler:
        if isinstance(value, (Spec, Ready)):
            return value
        if isinstance(value, type):
            return Spec(value)
        if callable(value):
            return Ready(value)
        text = (
            f"`{self.prefix}{slot}` must be a Spec, a class or a module that fills the slot, but is {value!r}"
        )
        self.findings.append(Finding(self.prefix + slot, text))
        return Spec(object)

    def attention(
        self, values: Mapping[str, Any], bias: tuple[Filler, ...], kind: str
    ) -> dict[str, tuple[Filler, ...]]:
        """The slots of one attention sublayer; the kernel last, as it must serve all the others."""
        slots = {}
        readers = [conflicts.declared("position_bias", filler) for filler in bias]
        for slot in (s.name for s in SLOTS.values() if s.scope == "attention" and s.name != "kernel"):
            slots[slot] = self.fill(slot, values, kind)
            readers += [conflicts.declared(slot, filler) for filler in slots[slot]]
        given = self.fill("kernel", values) if "kernel" in values else ()
        if given:
            # a class that declares nothing is trusted to serve whatever is asked
            known = getattr(given[0].cls, "component", None)
            asked = None if known is None else replace(known, select="kernel", when=...)
        else:
            chosen = [item for item in self.choose("kernel", values) if item.select is not None]
            asked = chosen[0] if chosen else None
        kernel, findings = conflicts.choose_kernel(asked, readers, self.registry, self.prefix)
        self.findings += findings
        slots["kernel"] = given or (self.spec(kernel, values),)
        return slots

    def modules(
        self, kinds: tuple[str, ...], values: Mapping[str, Any], bias: tuple[Filler, ...]
    ) -> tuple[Module, ...]:
        counts, seen = Counter(kinds), Counter[str]()
        modules = []
        for place, kind in enumerate(kinds):
            local, findings = for_layer(
                values, self.registry, SCOPE_OF[kind], kind == "c", seen[kind], counts[kind]
            )
            branch, more = for_layer(values, self.registry, "branch", False, place, len(kinds))
            self.findings += with_prefix(findings + more, self.prefix, values)
            seen[kind] += 1
            if kind == "f":
                slots = {s.name: self.fill(s.name, local) for s in SLOTS.values() if s.scope == "feedforward"}
            else:
                slots = self.attention(local, bias if kind == "a" else (), kind)
                self.used |= {
                    f"cross_{name}" for name in self.used if kind == "c" and f"cross_{name}" in values
                }
            slots |= {s.name: self.fill(s.name, branch) for s in SLOTS.values() if s.scope == "branch"}
            modules.append(Module(kind, slots))
        return tuple(modules)

    def dead(self, values: Mapping[str, Any]) -> list[Finding]:
        """Flags that were given and reach nothing."""
        findings = []
        for name, value in values.items():
            if name in self.used or name in SLOTS:
                continue
            bare = canonical(name, self.registry)
            if name == bare and value == self.registry.standard_value(name):
                continue
            findings.append(Finding(self.prefix + name, self._dead_text(name, bare, values)))
        return findings

    def _fills(self, slot: str) -> bool:
        return any(item.slot == slot for item in self.chosen)

    def _dead_text(self, name: str, bare: str, values: Mapping[str, Any]) -> str:
        owners = [item for item, _ in self.registry.params_named(bare)] or list(
            self.registry.selected_by(bare)
        )
        selects = sorted({f"`{self.prefix}{item.say()}`" for item in owners if item.select != bare})
        if owners[0].slot in values:
            why = f"something else was given for `{owners[0].slot}`"
        elif name == bare and self._fills(owners[0].slot) and any(item.select is None for item in owners):
            why = f"what fills `{owners[0].slot}` here does not read it; leave it out"
        elif any(item.select in (None, bare) for item in owners):
            why = f"this model has {_nowhere(owners[0], name)}"
        else:
            why = f"it tunes {' or '.join(selects)}, which is not set; set that too, or leave it out"
        return f"`{self.prefix}{name}` has no effect here, because {why}"


def _nowhere(owner: Component, name: str) -> str:
    scope = "cross-attention" if name.startswith("cross_") else SLOTS[owner.slot].scope
    return f"no {scope} sublayer"


def resolve(
    flags: Mapping[str, Any],
    registry: Registry,
    scopes: Iterable[str] = LAYER_SCOPES,
    *,
    prefix: str = "",
) -> Resolved:
    """Flat flags -> Resolved.

    Args:
        flags: names as users type them, without `prefix`.
        scopes: which scopes to fill ("model" for the wrapper's own flags).
        prefix: what the user typed in front (`enc_`), so that messages show it.

    Raises:
        FlagError: with every finding: unknown names, wrong values, crowded slots, unmet needs, dead flags.
    """
    values, findings = read_names(flags, registry, scopes, prefix)
    work = _Resolution(registry, prefix)
    stack_slots = [s.name for s in SLOTS.values() if s.scope in scopes and s.scope in ("model", "stack")]
    stack = {slot: work.fill(slot, values) for slot in stack_slots}
    work.findings = findings + work.findings
    plan: Any = None
    modules: tuple[Module, ...] = ()
    if "plan" in stack and all(finding.is_unknown for finding in work.findings):
        try:
            plan = stack["plan"][0].build()
        except FlagError as error:
            work.findings += with_prefix(error.findings, prefix, registry.names(scopes))
        else:
            work.findings += conflicts.unread(stack, plan.kinds, registry, prefix)
            work.findings += conflicts.missing(plan, values, registry, prefix)
            modules = work.modules(plan.kinds, values, stack["position_bias"])
            work.findings += conflicts.unrunnable(stack, modules, prefix)
    if not findings and not work.findings:
        work.findings += work.dead(values)
    work.findings += conflicts.unmet(dict.fromkeys(work.chosen), values, registry, prefix)
    if work.findings:
        raise FlagError(dict.fromkeys(work.findings))
    return Resolved(dict(flags), stack, plan, modules)
