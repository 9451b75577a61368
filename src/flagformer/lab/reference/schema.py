"""The JSON schema of flags, for completion and validation in editors."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from flagformer.flags import CATALOGUE, MODEL_SCOPES, Slot, open_slots
from flagformer.flags.flag import read_params
from flagformer.flags.import_paths import PATH
from flagformer.flags.slots import PER_LAYER
from flagformer.lab.reference.entries import Entry, entries, with_crossed
from flagformer.models.build import MODELS, ROUTING, WHOLE

DIALECT = "https://json-schema.org/draft/2020-12/schema"
TYPES: dict[Any, str] = {
    bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"
}  # fmt: skip
# Set by `flagformer.build` from `model`.
FIXED = frozenset({"causal"})


def schema() -> dict[str, Any]:
    """Return the schema of the flags of `flagformer.build`.

    `$defs/flags` has no required names; it is for parts of a model, such as the variants of a study.
    """
    required = [p.flag.name for item in CATALOGUE for p in item.params if p.required and not item.select]
    return {
        "$schema": DIALECT,
        "title": "flagformer flags",
        "description": "The flags of flagformer.build.",
        "if": {"properties": {"model": {"enum": [*WHOLE, *ROUTING]}}, "required": ["model"]},
        "then": {"anyOf": [{"$ref": f"#/$defs/{kind}"} for kind in (*WHOLE, *ROUTING)]},
        "else": {"$ref": "#/$defs/flags", "required": required},
        "$defs": {
            "flags": {"type": "object", "properties": _properties(), "additionalProperties": False},
            **{kind: _whole(kind) for kind in WHOLE},
            **{kind: _routing(kind) for kind in ROUTING},
        },
    }


def _properties() -> dict[str, Any]:
    model = {"enum": list(MODELS), "default": "decoder", "description": "the kind of model"}
    found = [entry for entry in with_crossed(entries(MODEL_SCOPES)) if entry.name not in FIXED]
    slots = {slot.name: _slot(slot) for slot in open_slots(MODEL_SCOPES)}
    return {"model": model, **{entry.name: _property(entry) for entry in found}, **slots}


def _slot(slot: Slot) -> dict[str, Any]:
    """Return the schema of a component by import path, alone, in a list, or in a list by layer."""
    path = {"type": "string", "pattern": f"^{PATH.pattern}$"}
    one = {"anyOf": [path, {"type": "object", "properties": {"class": path}, "required": ["class"]}]}
    each: list[dict[str, Any]] = [one, {"type": "null"}] if slot.scope in PER_LAYER else [one]
    if slot.many:
        each.append({"type": "array", "items": one})
    options = list(one["anyOf"])
    if slot.many or slot.scope in PER_LAYER:
        options.append({"type": "array", "items": {"anyOf": each}, "minItems": 1})
    return {"anyOf": options, "description": f"a component of your own: {slot.contract}"}


def _whole(kind: str) -> dict[str, Any]:
    """Return the schema of a model with flags of its own and parts with flags of the catalogue."""
    params = read_params(WHOLE[kind])
    own = {param.flag.name: _property(Entry(param.flag.name, param, "model", ())) for param in params}
    inner, required = {}, [param.flag.name for param in params if param.required]
    for part in WHOLE[kind].parts:
        for entry in with_crossed(entries(part.scopes)):
            if entry.name in part.decided or entry.name in FIXED:
                continue
            inner[part.prefix + entry.name] = {"$ref": f"#/$defs/flags/properties/{entry.name}"}
            if entry.param.required and not any(item.select for item in entry.owners):
                required.append(part.prefix + entry.name)
        for slot in (slot for slot in open_slots(part.scopes) if slot.name not in part.decided):
            inner[part.prefix + slot.name] = {"$ref": f"#/$defs/flags/properties/{slot.name}"}
    return {
        "type": "object",
        "properties": {"model": {"const": kind}, **own, **inner},
        "required": required,
        "additionalProperties": False,
    }


def _routing(kind: str) -> dict[str, Any]:
    """Return the schema of a model with the names of routing-transformer, which `flagformer.build` checks."""
    required = ["model", "dim"] if kind == "routing_encdec" else ["model", "dim", "num_tokens", "depth"]
    return {"type": "object", "properties": {"model": {"const": kind}}, "required": required}


def _property(entry: Entry) -> dict[str, Any]:
    options = [_kind(kind, entry) for kind in entry.kinds]
    if entry.per_layer:
        null = [] if type(None) in entry.kinds else [{"type": "null"}]
        each = {"items": _any_of([*options, *null]), "minItems": 1}
        options.append({"type": "array", **each, "description": "one value per layer, null for none"})
    found = dict(_any_of(options))
    found["description"] = entry.param.flag.doc
    if not entry.param.required and entry.param.default is not None:
        found["default"] = entry.param.default
    return found


def _any_of(options: list[dict[str, Any]]) -> dict[str, Any]:
    return options[0] if len(options) == 1 else {"anyOf": options}


def _kind(kind: Any, entry: Entry) -> dict[str, Any]:
    if kind is Any:
        return {}
    if get_origin(kind) is Literal:
        return {"enum": list(get_args(kind))}
    if get_origin(kind) is dict:
        return {"type": "object", "additionalProperties": _kind(get_args(kind)[1], entry)}
    if get_origin(kind) is tuple:
        return {"type": "array", "items": _kind(get_args(kind)[0], entry)}
    found: dict[str, Any] = {"type": TYPES[kind]}
    if kind in (int, float):
        if entry.param.flag.ge is not None:
            found["minimum"] = entry.param.flag.ge
        if entry.param.flag.lt is not None:
            found["exclusiveMaximum"] = entry.param.flag.lt
    return found
