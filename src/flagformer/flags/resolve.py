"""Flags -> frozen specs, once, before any tensor exists; every mistake in one FlagError."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flagformer.flags import conflicts
from flagformer.flags.contracts import Place, contract_of, filler_fault
from flagformer.flags.dead import Dead, Used
from flagformer.flags.errors import Finding, FlagError, with_prefix
from flagformer.flags.flag import Component
from flagformer.flags.names import Reaching, reaching, read_names
from flagformer.flags.registry import Registry
from flagformer.flags.slots import LAYER_SCOPES, SLOTS
from flagformer.flags.spec import Instance, Spec

Filler = Spec | Instance
SCOPE_OF = {"a": "attention", "c": "attention", "f": "feedforward"}


@dataclass(frozen=True)
class SublayerSpec:
    """One sublayer to be built: its kind ("a", "c" or "f") and the fillers of its slots."""

    kind: str
    slots: Mapping[str, tuple[Filler, ...]]


@dataclass(frozen=True)
class Resolved:
    """What flags mean: the fillers of the stack, its plan, and each sublayer's fillers."""

    flags: Mapping[str, Any]
    stack: Mapping[str, tuple[Filler, ...]]
    plan: Any
    modules: tuple[SublayerSpec, ...]

    def one(self, slot: str) -> Filler | None:
        """The filler of a one-place slot of the stack; None when it is empty."""
        fillers = self.stack.get(slot, ())
        return fillers[0] if fillers else None


class _Resolution:
    """The work of one `resolve` call: findings and used names gather here."""

    def __init__(self, registry: Registry, prefix: str, faulty: Collection[str]) -> None:
        self.registry, self.prefix, self.faulty = registry, prefix, faulty
        self.findings: list[Finding] = []
        self.used = Used()
        self.chosen: list[Component] = []
        self.refused: set[str] = set()  # slots that were given what cannot fill them

    def choose(self, slot: str, values: Mapping[str, Any], kind: str = "") -> list[Component]:
        """The components that the flags select for a slot, or its standard one."""
        chosen = []
        for item in self.registry.in_slot(slot):
            if item.select is None or item.select not in values:
                continue
            if not kind or item.kind in ("", kind):
                self.used.names.add(item.select)
                if item.is_selected_by(values[item.select]):
                    chosen.append(item)
        if len(chosen) > 1 and not SLOTS[slot].many:
            self.findings.append(conflicts.multiple_fillers(slot, chosen, self.prefix))
            self.used.names |= {param.flag.name for item in chosen for param in item.params}
            chosen = chosen[:1]
        standard = self.registry.default(slot)
        return chosen or ([standard] if standard is not None and not SLOTS[slot].many else [])

    def spec(self, item: Component, values: Mapping[str, Any]) -> Spec:
        params = {}
        for param in item.params:
            name = param.flag.name
            if name in values:
                self.used.names.add(name)
                params[param.argument] = values[name]
            elif param.required and name not in self.faulty:
                text = f"`{self.prefix}{name}` is required: {param.flag.doc}"
                self.findings.append(Finding(self.prefix + name, text))
        self.chosen.append(item)
        return Spec(item.cls, params)

    def fill(self, slot: str, values: Mapping[str, Any], kind: str = "") -> tuple[Filler, ...]:
        if slot in values:
            self.used.names.add(slot)
            given = values[slot] if isinstance(values[slot], (list, tuple)) else (values[slot],)
            return tuple(self._given(slot, value) for value in given)
        return tuple(self.spec(item, values) for item in self.choose(slot, values, kind))

    def _given(self, slot: str, value: Any) -> Filler:
        """What a user gives for a slot, held against the slot's contract."""
        place = Place(self.prefix + slot, contract_of(self.registry, slot))
        filler = (
            value
            if isinstance(value, (Spec, Instance))
            else Spec(value)
            if isinstance(value, type)
            else Instance(value)
        )
        fault = filler_fault(place.contract, filler)
        if not fault:
            return replace(filler, place=place) if isinstance(filler, Spec) else filler
        self.findings.append(place.finding(fault))
        self.refused.add(slot)
        return Spec(place.contract.base)

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
    ) -> tuple[SublayerSpec, ...]:
        """The sublayers of a plan; those of one kind with the same flags are resolved once."""
        counts, seen = Counter(kinds), Counter[str]()
        flags = {kind: self._reaching(values, SCOPE_OF[kind], kind, count) for kind, count in counts.items()}
        branch = self._reaching(values, "branch", "", len(kinds))
        made: dict[Any, tuple[SublayerSpec, set[str]]] = {}
        modules = []
        for place, kind in enumerate(kinds):
            ordinal, own = seen[kind], flags[kind]
            seen[kind] += 1
            key = (kind, own.key(ordinal), branch.key(place))
            if key not in made:
                made[key] = self._module(kind, own.at(ordinal), branch.at(place), bias)
            module, read = made[key]
            self.used.note(read, own, ordinal)
            self.used.note(read, branch, place)
            modules.append(module)
        return tuple(modules)

    def _reaching(self, values: Mapping[str, Any], scope: str, kind: str, count: int) -> Reaching:
        found, findings = reaching(values, self.registry, scope, kind, count)
        self.findings += with_prefix(findings, self.prefix, values)
        self.used.names |= {finding.flag for finding in findings}
        return found

    def _module(
        self, kind: str, own: Mapping[str, Any], branch: Mapping[str, Any], bias: tuple[Filler, ...]
    ) -> tuple[SublayerSpec, set[str]]:
        """One sublayer, and the flags it has read, without `cross_`."""
        of_stack, self.used.names = self.used.names, set()
        if kind == "f":
            slots = {s.name: self.fill(s.name, own) for s in SLOTS.values() if s.scope == "feedforward"}
        else:
            slots = self.attention(own, bias if kind == "a" else (), kind)
        slots |= {s.name: self.fill(s.name, branch) for s in SLOTS.values() if s.scope == "branch"}
        read, self.used.names = self.used.names, of_stack
        return SublayerSpec(kind, slots), read


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
    values, findings, faulty = read_names(flags, registry, scopes, prefix)
    work = _Resolution(registry, prefix, faulty)
    stack_slots = [s.name for s in SLOTS.values() if s.scope in scopes and s.scope in ("model", "stack")]
    stack = {slot: work.fill(slot, values) for slot in stack_slots}
    order = {param.flag.name for item in registry.in_slot("plan") for param in item.params} | {"plan"}
    plan: Any = None
    modules: tuple[SublayerSpec, ...] = ()
    if "plan" in stack and not order & faulty and "plan" not in work.refused:
        try:
            plan = stack["plan"][0].build()
        except FlagError as error:
            work.findings += with_prefix(error.findings, prefix, registry.names(scopes))
        else:
            work.findings += conflicts.unread_components(stack, plan.kinds, registry, prefix)
            work.findings += conflicts.missing_components(plan, values, registry, prefix)
            modules = work.modules(plan.kinds, values, stack["position_bias"])
            work.findings += conflicts.unsupported_kernels(stack, modules, prefix)
    planned = plan is not None or "plan" not in stack
    # what is refused for another reason needs no second one, nor does what it would have selected
    refused = {finding.flag.removeprefix(prefix).split("=")[0] for finding in work.findings}
    dead = Dead(registry, prefix, faulty | refused, work.chosen, planned)
    work.findings += dead.findings(values, work.used)
    work.findings += conflicts.unmet_requirements(
        dict.fromkeys(work.chosen), values, registry, prefix, faulty
    )
    if findings or work.findings:
        raise FlagError(dict.fromkeys(findings + work.findings))
    given = {name: values[name] if name not in SLOTS else value for name, value in flags.items()}
    return Resolved(given, stack, plan, modules)
