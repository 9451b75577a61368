"""Resolution of flags to the specs of all components, before any tensor exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from flagformer.flags import conflicts
from flagformer.flags.contracts import UserSlot, contract_error, contract_of, place_error
from flagformer.flags.errors import Finding, FlagError, with_prefix
from flagformer.flags.flag import Component
from flagformer.flags.import_paths import ImportPathError, imported, is_by_path, place_of
from flagformer.flags.names import SublayerFlags, parse_flags, sublayer_flags
from flagformer.flags.needs import declared, fastest_kernel, unmet_needs
from flagformer.flags.registry import Registry
from flagformer.flags.slots import LAYER_SCOPES, SLOTS
from flagformer.flags.spec import Instance, Spec
from flagformer.flags.unused import UnusedFlags, UsedFlags

Buildable = Spec | Instance
SCOPE_OF = {"a": "attention", "c": "attention", "f": "feedforward", "m": "mixer"}


@dataclass(frozen=True)
class SublayerSpec:
    """One sublayer to build: its kind ("a", "c", "f" or "m") and the components of its slots."""

    kind: str
    slots: Mapping[str, tuple[Buildable, ...]]


@dataclass(frozen=True)
class Resolved:
    """Resolved flags: the components of the stack, its plan, and the components of each sublayer."""

    flags: Mapping[str, Any]
    stack: Mapping[str, tuple[Buildable, ...]]
    plan: Any
    modules: tuple[SublayerSpec, ...]

    def one(self, slot: str) -> Buildable | None:
        """Return the component of a slot of the stack that takes one; None if the slot is empty."""
        choices = self.stack.get(slot, ())
        return choices[0] if choices else None


def _as_component(slot: str, value: Any) -> Buildable:
    """Return a component as a Spec or an Instance; import paths are imported."""
    if isinstance(value, (Spec, Instance)):
        return value
    if is_by_path(value):
        return imported(slot, value)
    return Spec(value) if isinstance(value, type) else Instance(value)


class _Resolution:
    """The state of one `resolve` call, with its findings and the flags used so far."""

    def __init__(self, registry: Registry, prefix: str, invalid: Collection[str]) -> None:
        self.registry, self.prefix, self.invalid = registry, prefix, invalid
        self.findings: list[Finding] = []
        self.used = UsedFlags()
        self.chosen: list[Component] = []
        self.refused: set[str] = set()  # slots whose component breaks the contract
        self.layers: dict[str, int] = {}  # the layer of each slot that is given by layer

    def choose(self, slot: str, values: Mapping[str, Any], kind: str = "") -> list[Component]:
        """Return the components that the flags select for a slot, or its default."""
        chosen = []
        for item in self.registry.in_slot(slot):
            if item.select is None or item.select not in values:
                continue
            if not kind or item.kind in ("", kind):
                self.used.names.add(item.select)
                if item.is_selected_by(values[item.select]):
                    chosen.append(item)
        if len(chosen) > 1:  # a parameter of one component does not select another with it
            params = {(item.select, param.flag.name) for item in chosen for param in item.params}
            taken = {name for select, name in params if name != select}
            chosen = [item for item in chosen if item.select not in taken]
        if len(chosen) > 1 and not SLOTS[slot].many:
            self.findings.append(conflicts.multiple_components(slot, chosen, self.prefix))
            self.used.names |= {param.flag.name for item in chosen for param in item.params}
            chosen = chosen[:1]
        default = self.registry.default(slot)
        return chosen or ([default] if default is not None and not SLOTS[slot].many else [])

    def spec(self, item: Component, values: Mapping[str, Any]) -> Spec:
        params = {}
        for param in item.params:
            name = param.flag.name
            if name in values:
                self.used.names.add(name)
                params[param.argument] = values[name]
            elif param.required and name not in self.invalid:
                text = f"`{self.prefix}{name}` is required: {param.flag.doc}"
                self.findings.append(Finding(self.prefix + name, text))
        self.chosen.append(item)
        return Spec(item.cls, params)

    def fill(self, slot: str, values: Mapping[str, Any], kind: str = "") -> tuple[Buildable, ...]:
        if slot in values:
            self.used.names.add(slot)
            given = values[slot] if isinstance(values[slot], (list, tuple)) else (values[slot],)
            return tuple(self._given(slot, value) for value in given)
        return tuple(self.spec(item, values) for item in self.choose(slot, values, kind))

    def _given(self, slot: str, value: Any) -> Buildable:
        """Return the component that a user passed for a slot, after a check of the slot's contract."""
        user_slot = UserSlot(self.prefix + slot, contract_of(self.registry, slot), self.layers.get(slot))
        try:
            choice = _as_component(user_slot.typed, value)
            error = contract_error(user_slot.contract, choice) or place_error(slot, choice)
            if error and is_by_path(value):
                error += place_of(choice.cls if isinstance(choice, Spec) else choice.module)
        except ImportPathError as wrong:
            choice, error = Instance(value), str(wrong)
        if not error:
            return replace(choice, slot=user_slot) if isinstance(choice, Spec) else choice
        self.findings.append(user_slot.finding(error))
        self.refused.add(slot)
        return Spec(user_slot.contract.base)

    def attention(
        self, values: Mapping[str, Any], bias: tuple[Buildable, ...], kind: str
    ) -> dict[str, tuple[Buildable, ...]]:
        """Return the slots of one attention sublayer; the kernel comes last, as it depends on the others."""
        slots = {}
        others = [declared("position_bias", choice) for choice in bias]
        for slot in (s.name for s in SLOTS.values() if s.scope == "attention" and s.name != "kernel"):
            slots[slot] = self.fill(slot, values, kind)
            others += [declared(slot, choice) for choice in slots[slot]]
        if "kernel" in values:
            slots["kernel"] = self.fill("kernel", values)
        else:
            chosen = [item for item in self.choose("kernel", values) if item.select is not None]
            kernel = chosen[0] if chosen else fastest_kernel(others, self.registry)
            slots["kernel"] = (self.spec(kernel, values),)
        return slots

    def modules(
        self, plan: Any, values: Mapping[str, Any], stack: Mapping[str, tuple[Buildable, ...]]
    ) -> tuple[SublayerSpec, ...]:
        """Return the sublayers of a plan; sublayers of one kind with equal flags share one spec."""
        kinds, mixers = plan.kinds, iter(getattr(plan, "mixers", ()))
        counts, ordinals = Counter(kinds), Counter[str]()
        flags = {kind: self._flags_of(values, SCOPE_OF[kind], kind, count) for kind, count in counts.items()}
        branch = self._flags_of(values, "branch", "", len(kinds))
        made: dict[Any, tuple[SublayerSpec, set[str]]] = {}
        modules = []
        for index, kind in enumerate(kinds):
            ordinal, own = ordinals[kind], flags[kind]
            ordinals[kind] += 1
            mixer = next(mixers, None) if kind == "m" else None
            key = (kind, own.key(ordinal), branch.key(index), mixer)
            if key not in made:
                self.layers = dict.fromkeys(own.per_layer, ordinal) | dict.fromkeys(branch.per_layer, index)
                of_kind = {**own.at(ordinal), "mixer": mixer} if kind == "m" else own.at(ordinal)
                made[key] = self._module(kind, of_kind, branch.at(index), stack["position_bias"])
                self.findings += unmet_needs(stack, made[key][0], self.prefix, own.renamed)
            module, used = made[key]
            self.used.add(used, own, ordinal)
            self.used.add(used, branch, index)
            modules.append(module)
        return tuple(modules)

    def _flags_of(self, values: Mapping[str, Any], scope: str, kind: str, count: int) -> SublayerFlags:
        found, findings = sublayer_flags(values, self.registry, scope, kind, count)
        self.findings += with_prefix(findings, self.prefix, values)
        self.used.names |= {finding.flag for finding in findings}
        return found

    def _module(
        self, kind: str, own: Mapping[str, Any], branch: Mapping[str, Any], bias: tuple[Buildable, ...]
    ) -> tuple[SublayerSpec, set[str]]:
        """Return one sublayer and the flags that it uses, without `cross_`."""
        of_stack, self.used.names = self.used.names, set()
        if kind == "m":
            slots = {"sequence_mixer": self.fill("sequence_mixer", own)}
            self.findings += conflicts.mixer_errors(own, self.registry, self.prefix)
        elif kind == "f":
            slots = {s.name: self.fill(s.name, own) for s in SLOTS.values() if s.scope == "feedforward"}
        else:
            slots = self.attention(own, bias if kind == "a" else (), kind)
        slots |= {s.name: self.fill(s.name, branch) for s in SLOTS.values() if s.scope == "branch"}
        used, self.used.names = self.used.names, of_stack
        return SublayerSpec(kind, slots), used


def resolve(
    flags: Mapping[str, Any],
    registry: Registry,
    scopes: Iterable[str] = LAYER_SCOPES,
    *,
    prefix: str = "",
    slots: Collection[str] | None = None,
) -> Resolved:
    """Resolve a flat dictionary of flags.

    Args:
        flags: names as users type them, without `prefix`.
        scopes: the scopes of the slots to fill ("model" for the flags of the wrapper).
        prefix: the prefix that the user typed (`enc_`), for messages.
        slots: the only slots of the model and the stack to fill; None: all.

    Raises:
        FlagError: with all findings: unknown names, invalid values, several components for one slot,
            requirements that do not hold, flags without effect.
    """
    values, findings, invalid = parse_flags(flags, registry, scopes, prefix)
    work = _Resolution(registry, prefix, invalid)
    stack_slots = [s.name for s in SLOTS.values() if s.scope in scopes and s.scope in ("model", "stack")]
    stack = {slot: work.fill(slot, values) for slot in stack_slots if slots is None or slot in slots}
    order = {param.flag.name for item in registry.in_slot("plan") for param in item.params} | {"plan"}
    plan: Any = None
    modules: tuple[SublayerSpec, ...] = ()
    if "plan" in stack and not order & invalid and "plan" not in work.refused:
        try:
            plan = stack["plan"][0].build()
        except FlagError as error:
            work.findings += with_prefix(error.findings, prefix, registry.names(scopes))
        else:
            work.findings += conflicts.unread_components(stack, plan.kinds, registry, prefix)
            work.findings += conflicts.missing_components(plan, values, registry, prefix)
            modules = work.modules(plan, values, stack)
    if not modules:
        work.findings += unmet_needs(stack, None, prefix)
    planned = plan is not None or "plan" not in stack
    # a flag with an error is not reported as unused too, nor are the parameters of its component
    refused = {finding.flag.removeprefix(prefix).split("=")[0] for finding in work.findings}
    unused = UnusedFlags(registry, prefix, invalid | refused, work.chosen, planned)
    work.findings += unused.findings(values, work.used)
    work.findings += conflicts.unmet_requirements(
        dict.fromkeys(work.chosen), values, registry, prefix, invalid
    )
    if findings or work.findings:
        raise FlagError(dict.fromkeys(findings + work.findings))
    given = {name: values[name] if name not in SLOTS else value for name, value in flags.items()}
    return Resolved(given, stack, plan, modules)
