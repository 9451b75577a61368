"""Names as users type them: prefixes, cross-attention forms, per-layer tuples, unknown names."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flagformer.flags.errors import Finding, nearest
from flagformer.flags.foreign import answer
from flagformer.flags.registry import Registry
from flagformer.flags.slots import SLOTS
from flagformer.flags.values import fault, freeze

CROSS = "cross_"
PER_LAYER = frozenset({"attention", "feedforward", "branch"})


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


def read_names(
    flags: Mapping[str, Any], registry: Registry, scopes: Iterable[str], prefix: str
) -> tuple[dict[str, Any], list[Finding]]:
    """The known flags with frozen values, and a finding for every name or value that cannot be."""
    known = set(registry.names(scopes))
    known |= {CROSS + name for name in registry.crossed()}
    slots = {slot.name for slot in SLOTS.values() if slot.scope in set(scopes)}
    values: dict[str, Any] = {}
    findings = []
    for name, value in flags.items():
        if name in slots:
            values[name] = value
        elif name not in known:
            findings.append(Finding(prefix + name, _unknown(name, known, prefix), is_unknown=True))
        else:
            values[name] = freeze(value)
            text = _value_fault(name, values[name], registry)
            if text:
                findings.append(Finding(prefix + name, f"`{prefix}{name}` {text}"))
    return values, findings


def _unknown(name: str, known: Collection[str], prefix: str) -> str:
    told = answer(name)
    if told:
        typed = re.sub(
            r"`(\w+)", lambda match: f"`{prefix if match[1] in {*known, *SLOTS} else ''}{match[1]}", told
        )
        return f"`{prefix}{name}` is no flag of this library: {typed}"
    longer = [f"`{prefix}{part}{name}`" for part in ("attn_", "ff_") if part + name in known]
    if longer:
        return f"`{prefix}{name}` is not a flag; say {' or '.join(longer)}"
    if (bare := name.removeprefix(CROSS)) in known:
        return (
            f"`{prefix}{name}` is not a flag, because `{prefix}{bare}` has no form for cross-attention alone"
        )
    hint = nearest(name, known).replace("`", f"`{prefix}", 1)
    return f"`{prefix}{name}` is not a flag{hint or '; `flagformer flags` lists them all'}"


def is_per_layer(name: str, value: Any, registry: Registry) -> bool:
    """A tuple given to a flag that is no tuple itself, in a slot that every layer fills anew."""
    bare = canonical(name, registry)
    if not isinstance(value, tuple) or registry.scope(bare) not in PER_LAYER:
        return False
    return bool(fault(registry.param(bare), value))


def _value_fault(name: str, value: Any, registry: Registry) -> str:
    param = registry.param(canonical(name, registry))
    if is_per_layer(name, value, registry):
        faults = (f"at layer {i} {fault(param, item)}" for i, item in enumerate(value) if fault(param, item))
        return next(faults, "")
    return fault(param, value)


def for_layer(
    values: Mapping[str, Any], registry: Registry, scope: str, cross: bool, ordinal: int, count: int
) -> tuple[dict[str, Any], list[Finding]]:
    """The scalar flags of one sublayer: the cross form where it is one, its item of per-layer tuples."""
    local: dict[str, Any] = {}
    findings = []
    kind = "c" if cross else "a"
    for name, value in values.items():
        bare = canonical(name, registry)
        if name in SLOTS:
            if SLOTS[name].scope == scope:
                local[name] = value
            continue
        if (
            registry.scope(bare) != scope
            or (scope == "attention" and not registry.reaches(bare, kind))
            or (bare != name and not cross)
            or (cross and CROSS + name in values)
        ):
            continue
        if is_per_layer(name, value, registry):
            if len(value) != count:
                which = "cross-attention" if cross else {"attention": "self-attention"}.get(scope, scope)
                findings.append(Finding(name, _length_fault(name, len(value), count, which)))
                continue
            value = value[ordinal]
        local[bare] = value
    return local, findings


def _length_fault(name: str, length: int, count: int, which: str) -> str:
    places = "sublayers" if which == "branch" else f"{which} sublayers"
    return f"`{name}` has {length} values for {count} {places}; give one value, or one for each of them"
