"""Names as users type them: prefixes, cross-attention forms, per-layer tuples, unknown names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from flagformer.flags.errors import Finding, closest, nearest
from flagformer.flags.foreign import hint_for_unknown
from flagformer.flags.registry import Registry
from flagformer.flags.slots import LAYER_SCOPES, SLOTS
from flagformer.flags.values import normalize, validation_error

CROSS = "cross_"
PER_LAYER = frozenset({"attention", "feedforward", "branch"})
UNSAID: Any = object()


def split_prefixes(flags: Mapping[str, Any], *prefixes: str) -> tuple[dict[str, Any], ...]:
    """`enc_dim=..., dec_dim=..., x=...` -> ({dim}, {dim}, {x}): one dictionary a prefix, the rest last."""
    parts: tuple[dict[str, Any], ...] = tuple({} for _ in range(len(prefixes) + 1))
    for name, value in flags.items():
        place = next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes))
        short = name.removeprefix(prefixes[place]) if place < len(prefixes) else name
        parts[place][short] = value
    return parts


def canonical(name: str, registry: Registry) -> str:
    """`cross_attn_kv_heads` is `attn_kv_heads`, set for cross-attention only."""
    bare = name.removeprefix(CROSS)
    return bare if name.startswith(CROSS) and bare in registry.crossed() else name


class Read(NamedTuple):
    """What was typed.

    Attributes:
        values: the known flags with frozen values.
        findings: one for every name or value that cannot be.
        faulty: the flags whose value is not known: a wrong one, or a misspelt name.
    """

    values: dict[str, Any]
    findings: list[Finding]
    faulty: frozenset[str]


def read_names(flags: Mapping[str, Any], registry: Registry, scopes: Iterable[str], prefix: str) -> Read:
    """Names and values, each judged for itself."""
    known = set(registry.names(scopes))
    known |= {CROSS + name for name in registry.crossed()}
    slots = {slot.name for slot in SLOTS.values() if slot.scope in LAYER_SCOPES.intersection(scopes)}
    values: dict[str, Any] = {}
    findings = []
    faulty = set()
    for name, value in flags.items():
        if name not in known | slots:
            findings.append(Finding(prefix + name, _unknown(name, known | slots, prefix), is_unknown=True))
            faulty |= {name, closest(name, known | slots)}
            continue
        text = _slot_fault(name, value) if name in slots else _value_fault(name, normalize(value), registry)
        if text:
            findings.append(Finding(prefix + name, f"`{prefix}{name}` {text}"))
            faulty.add(name)
        else:
            values[name] = value if name in slots and not is_list_of_layers(name, value) else normalize(value)
    return Read(values, findings, frozenset(faulty - values.keys()))


def _unknown(name: str, known: Collection[str], prefix: str) -> str:
    told = hint_for_unknown(name)
    if told:
        typed = re.sub(
            r"`(\w+)", lambda match: f"`{prefix if match[1] in {*known, *SLOTS} else ''}{match[1]}", told
        )
        return f"`{prefix}{name}` is no flag of this library: {typed}"
    if name in SLOTS and SLOTS[name].scope not in LAYER_SCOPES:
        return f"`{prefix}{name}` takes no filler of your own: only slots of the layers do; its flags fill it"
    longer = [f"`{prefix}{part}{name}`" for part in ("attn_", "ff_") if part + name in known]
    if longer:
        return f"`{prefix}{name}` is not a flag; say {' or '.join(longer)}"
    if (bare := name.removeprefix(CROSS)) in known:
        return (
            f"`{prefix}{name}` is not a flag, because `{prefix}{bare}` has no form for cross-attention alone"
        )
    for half in ("enc_", "dec_"):
        if name.startswith(half) and name.removeprefix(half) in known:
            return f"`{prefix}{name}` is a flag of `model: xtransformer` or `memformer`, of two halves"
    hint = nearest(name, known).replace("`", f"`{prefix}", 1)
    return f"`{prefix}{name}` is not a flag{hint or '; `flagformer flags` lists them all'}"


def is_per_layer(name: str, value: Any, registry: Registry) -> bool:
    """A tuple given to a flag that is no tuple itself, in a slot that every layer fills anew."""
    if name in SLOTS:
        return is_list_of_layers(name, value)
    bare = canonical(name, registry)
    if not isinstance(value, tuple) or registry.scope(bare) not in PER_LAYER:
        return False
    return bool(validation_error(registry.param(bare), value))


def is_list_of_layers(slot: str, value: Any) -> bool:
    """Whether a value given to a slot is one filler a layer; a slot of many takes a list as its fillers."""
    place = SLOTS[slot]
    return isinstance(value, (list, tuple)) and place.scope in PER_LAYER and not place.many


def _slot_fault(name: str, value: Any) -> str:
    if isinstance(value, (list, tuple)) and not (SLOTS[name].many or is_list_of_layers(name, value)):
        return f"must be one filler, as the whole model has one place for it, but is a list of {len(value)}"
    return ""


def _value_fault(name: str, value: Any, registry: Registry) -> str:
    param = registry.param(canonical(name, registry))
    if is_per_layer(name, value, registry):
        faults = (
            f"at layer {i} {validation_error(param, item)}"
            for i, item in enumerate(value)
            if item is not None and validation_error(param, item)
        )
        return next(faults, "")
    return validation_error(param, value)


@dataclass(frozen=True)
class Reaching:
    """The flags that reach one kind of sublayer.

    Attributes:
        shared: those with one value for all of these sublayers.
        each: those with a value for each of them; None where nothing is said.
        typed: the name of each as it was typed.
    """

    shared: Mapping[str, Any]
    each: Mapping[str, tuple[Any, ...]]
    typed: Mapping[str, str]

    def at(self, ordinal: int) -> dict[str, Any]:
        """The flags of one of these sublayers."""
        own = {name: value[ordinal] for name, value in self.each.items()}
        return {**self.shared, **{name: value for name, value in own.items() if value is not UNSAID}}

    def key(self, ordinal: int) -> tuple[int, ...]:
        """The same for sublayers that have the same flags."""
        return tuple(id(value[ordinal]) for value in self.each.values())


def reaching(
    values: Mapping[str, Any], registry: Registry, scope: str, kind: str, count: int
) -> tuple[Reaching, list[Finding]]:
    """The flags of the `count` sublayers of a kind: the cross form where they are cross-attention."""
    shared: dict[str, Any] = {}
    each: dict[str, tuple[Any, ...]] = {}
    typed: dict[str, str] = {}
    findings = []
    for name, value in values.items():
        bare = canonical(name, registry)
        if not _reaches(name, bare, values, registry, scope, kind):
            continue
        typed[bare] = name
        if not is_per_layer(name, value, registry):
            shared[bare] = value
        elif len(value) == count:
            each[bare] = tuple(_said(item, bare, registry) for item in value)
        else:
            which = "cross-attention" if kind == "c" else {"attention": "self-attention"}.get(scope, scope)
            findings.append(Finding(name, _length_fault(name, len(value), count, which)))
    return Reaching(shared, each, typed), findings


def _reaches(
    name: str, bare: str, values: Mapping[str, Any], registry: Registry, scope: str, kind: str
) -> bool:
    if (SLOTS[name].scope if name in SLOTS else registry.scope(bare)) != scope:
        return False
    if scope == "attention" and not registry.reaches(bare, kind):
        return False
    if name != bare:
        return kind == "c"
    return kind != "c" or CROSS + name not in values


def _said(item: Any, bare: str, registry: Registry) -> Any:
    """One layer's item; None says nothing where it is no value of the flag."""
    if item is None and bare not in SLOTS and validation_error(registry.param(bare), None):
        return UNSAID
    return item


def _length_fault(name: str, length: int, count: int, which: str) -> str:
    places = "sublayers" if which == "branch" else f"{which} sublayers"
    return f"`{name}` has {length} values for {count} {places}; give one value, or one for each of them"
