"""Parsing of flag names: prefixes, cross-attention forms, values per layer, unknown names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from flagformer.flags.errors import Finding, closest, nearest
from flagformer.flags.foreign import hint_for_unknown
from flagformer.flags.registry import Registry
from flagformer.flags.slots import PER_LAYER, SLOTS, open_slots
from flagformer.flags.values import normalize, type_name, validation_error

CROSS = "cross_"
UNSET: Any = object()


def split_prefixes(flags: Mapping[str, Any], *prefixes: str) -> tuple[dict[str, Any], ...]:
    """Split flags by prefix: `enc_dim=.., dec_dim=.., x=..` -> ({dim}, {dim}, {x}), the rest last."""
    parts: tuple[dict[str, Any], ...] = tuple({} for _ in range(len(prefixes) + 1))
    for name, value in flags.items():
        index = next((i for i, prefix in enumerate(prefixes) if name.startswith(prefix)), len(prefixes))
        short = name.removeprefix(prefixes[index]) if index < len(prefixes) else name
        parts[index][short] = value
    return parts


def canonical(name: str, registry: Registry) -> str:
    """Return the name without `cross_`: `cross_attn_kv_heads` is `attn_kv_heads` for cross-attention only."""
    bare = name.removeprefix(CROSS)
    return bare if name.startswith(CROSS) and bare in registry.crossed() else name


class ParsedFlags(NamedTuple):
    """The valid flags, and the errors of the others.

    Attributes:
        values: the valid flags with normalized values.
        findings: one for each unknown name and each invalid value.
        invalid: flags with an invalid value, and flags whose name was misspelt.
    """

    values: dict[str, Any]
    findings: list[Finding]
    invalid: frozenset[str]


def parse_flags(
    flags: Mapping[str, Any], registry: Registry, scopes: Iterable[str], prefix: str
) -> ParsedFlags:
    """Check each name and value on its own."""
    known = set(registry.names(scopes))
    known |= {CROSS + name for name in registry.crossed()}
    slots = {slot.name for slot in open_slots(scopes)}
    known |= slots
    values: dict[str, Any] = {}
    findings = []
    invalid = set()
    for name, value in flags.items():
        if name not in known:
            findings.append(Finding(prefix + name, _unknown(name, known, prefix), is_unknown=True))
            invalid |= {name, closest(name, known)}
            continue
        text = _slot_error(name, value) if name in slots else _value_error(name, normalize(value), registry)
        if text:
            findings.append(Finding(prefix + name, f"`{prefix}{name}` {text}"))
            invalid.add(name)
        else:
            values[name] = value if name in slots and not is_list_of_layers(name, value) else normalize(value)
    return ParsedFlags(values, findings, frozenset(invalid - values.keys()))


def _unknown(name: str, known: Collection[str], prefix: str) -> str:
    advice = hint_for_unknown(name)
    if advice:
        typed = re.sub(
            r"`(\w+)", lambda match: f"`{prefix if match[1] in {*known, *SLOTS} else ''}{match[1]}", advice
        )
        return f"`{prefix}{name}` is not a flag of this library: {typed}"
    if name in SLOTS and not SLOTS[name].is_open:
        return f"`{prefix}{name}` takes no component of your own: it is the model itself; set its flags"
    if name in SLOTS and SLOTS[name].scope == "model":
        where = "`TransformerWrapper` and the models of `flagformer.build` that have one take it"
        return f"`{prefix}{name}` is a slot of a model of tokens, not of its layers; {where}"
    longer = [f"`{prefix}{part}{name}`" for part in ("attn_", "ff_") if part + name in known]
    if longer:
        return f"`{prefix}{name}` is not a flag; use {' or '.join(longer)}"
    if (bare := name.removeprefix(CROSS)) in known:
        return f"`{prefix}{name}` is not a flag, because `{prefix}{bare}` has no cross-attention form"
    for half in ("enc_", "dec_"):
        if name.startswith(half) and name.removeprefix(half) in known:
            return f"`{prefix}{name}` is a flag of encoder-decoders: `model: xtransformer` or `memformer`"
    hint = nearest(name, known).replace("`", f"`{prefix}", 1)
    return f"`{prefix}{name}` is not a flag{hint or '; `flagformer flags` lists them all'}"


def is_per_layer(name: str, value: Any, registry: Registry) -> bool:
    """Whether a value is a tuple with one value per layer."""
    if name in SLOTS:
        return is_list_of_layers(name, value)
    bare = canonical(name, registry)
    if not isinstance(value, tuple) or registry.scope(bare) not in PER_LAYER:
        return False
    return bool(validation_error(registry.param(bare), value))


def is_list_of_layers(slot: str, value: Any) -> bool:
    """Whether the value of a slot is a list of one component per layer.

    In a slot that takes several components a flat list is the components of every layer; a list that holds
    lists, or None, is one of layers.
    """
    found = SLOTS[slot]
    if not isinstance(value, (list, tuple)) or found.scope not in PER_LAYER:
        return False
    return not found.many or any(item is None or isinstance(item, (list, tuple)) for item in value)


def _slot_error(name: str, value: Any) -> str:
    slot = SLOTS[name]
    if not isinstance(value, (list, tuple)) or slot.many:
        return ""
    if not is_list_of_layers(name, value):
        return f"must be one component, which all layers share, but is a list of {len(value)}"
    lists = (index for index, item in enumerate(value) if isinstance(item, (list, tuple)))
    return next((f"must be one component at layer {index}, but is a list there" for index in lists), "")


def _value_error(name: str, value: Any, registry: Registry) -> str:
    param = registry.param(canonical(name, registry))
    if is_per_layer(name, value, registry):
        errors = (
            f"at layer {i} {validation_error(param, item)}"
            for i, item in enumerate(value)
            if item is not None and validation_error(param, item)
        )
        return next(errors, "")
    return _shared_error(name, value, registry) or validation_error(param, value)


def _shared_error(name: str, value: Any, registry: Registry) -> str:
    """Return the error of a list by layer for a flag of the stack or the model; empty for other values."""
    param = registry.param(name)
    if not isinstance(value, tuple) or not value or not validation_error(param, value):
        return ""
    if any(item is not None and validation_error(param, item) for item in value):
        return ""
    whole = "model" if registry.scope(name) == "model" else "stack"
    slot = registry.owners(name)[0].slot
    why = f"the slot `{slot}` is filled once for the {whole}"
    return f"must be {type_name(param.type)}, because {why}, but is {value!r}"


@dataclass(frozen=True)
class SublayerFlags:
    """The flags of one kind of sublayer.

    Attributes:
        shared: flags with one value for all of these sublayers.
        per_layer: flags with a value for each of them; UNSET where a layer has none.
        typed: the name of each flag as typed.
    """

    shared: Mapping[str, Any]
    per_layer: Mapping[str, tuple[Any, ...]]
    typed: Mapping[str, str]

    @cached_property
    def renamed(self) -> dict[str, str]:
        """`typed` without the names that were typed as they are declared."""
        return {bare: name for bare, name in self.typed.items() if name != bare}

    def at(self, ordinal: int) -> dict[str, Any]:
        """Return the flags of one of these sublayers."""
        own = {name: value[ordinal] for name, value in self.per_layer.items()}
        return {**self.shared, **{name: value for name, value in own.items() if value is not UNSET}}

    def key(self, ordinal: int) -> tuple[int, ...]:
        """Return a key that is equal for sublayers with equal flags."""
        return tuple(id(value[ordinal]) for value in self.per_layer.values())


def sublayer_flags(
    values: Mapping[str, Any], registry: Registry, scope: str, kind: str, count: int
) -> tuple[SublayerFlags, list[Finding]]:
    """Return the flags of the `count` sublayers of a kind, in their `cross_` form for cross-attention."""
    shared: dict[str, Any] = {}
    per_layer: dict[str, tuple[Any, ...]] = {}
    typed: dict[str, str] = {}
    findings = []
    for name, value in values.items():
        bare = canonical(name, registry)
        if not _applies(name, bare, values, registry, scope, kind):
            continue
        typed[bare] = name
        if not is_per_layer(name, value, registry):
            shared[bare] = value
        elif len(value) == count:
            per_layer[bare] = tuple(_layer_value(item, bare, registry) for item in value)
        else:
            which = "cross-attention" if kind == "c" else {"attention": "self-attention"}.get(scope, scope)
            findings.append(Finding(name, _length_error(name, len(value), count, which)))
    return SublayerFlags(shared, per_layer, typed), findings


def _applies(
    name: str, bare: str, values: Mapping[str, Any], registry: Registry, scope: str, kind: str
) -> bool:
    if (SLOTS[name].scope if name in SLOTS else registry.scope(bare)) != scope:
        return False
    if scope == "attention" and not registry.reaches(bare, kind):
        return False
    if name != bare:
        return kind == "c"
    return kind != "c" or CROSS + name not in values


def _layer_value(item: Any, bare: str, registry: Registry) -> Any:
    """Return one layer's value; UNSET for a None in a slot, or that the flag does not accept."""
    if item is None and (bare in SLOTS or validation_error(registry.param(bare), None)):
        return UNSET
    return item


def _length_error(name: str, length: int, count: int, which: str) -> str:
    sublayers = "sublayers" if which == "branch" else f"{which} sublayers"
    return f"`{name}` has {length} values for {count} {sublayers}; pass one value, or one for each of them"
