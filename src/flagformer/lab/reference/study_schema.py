"""The JSON schema of study files, for completion and validation in editors.

`flagformer study schema` prints it; `docs/study.schema.json` is a copy.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from flagformer.flags.flag import read_params
from flagformer.flags.import_paths import PATH
from flagformer.flags.routing_names import REFUSED, RENAMED, TRANSLATED
from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.objectives import PAIRS
from flagformer.lab.objectives.catalogue import ObjectiveConfig
from flagformer.lab.reference.schema import schema as flags_schema
from flagformer.lab.study.design import MatchConfig
from flagformer.lab.study.file import MOST_SEEDS, StudyFile
from flagformer.lab.train.config import EvaluateConfig, TrainConfig
from flagformer.models.build import MODELS, ROUTING, WHOLE

BLOCKS: dict[str, Any] = {
    "data": DataConfig, "objective": ObjectiveConfig, "train": TrainConfig, "evaluate": EvaluateConfig,
    "match": MatchConfig,
}  # fmt: skip
KINDS = ("flags", "vit")  # models of tokens or vectors, models of images
DIRECTORY = "The directory of a published model or of `model.save`, onto which the other flags are grafted."
FACTORS = (
    "Values of flags or training settings; every combination is a cell, in which the variants are compared "
    "with the baseline."
)
PATH_AND_DIGEST = {
    "type": "object", "properties": {"path": {"type": "string"}, "digest": {"type": "string"}},
    "required": ["path", "digest"], "additionalProperties": False,
}  # fmt: skip
START = {"from": {"anyOf": [{"type": "string"}, PATH_AND_DIGEST], "description": DIRECTORY}}
PRESET = {"preset": {"type": "string", "description": "A published model, whose flags the others change."}}
ONE_ROW = [kind for kind in (*MODELS, *WHOLE, *ROUTING) if kind not in (*PAIRS, "vit")]
MODEL = {"model": {"enum": ONE_ROW, "default": "decoder", "description": "the kind of model"}}


def study_schema() -> dict[str, Any]:
    """Return the schema of a study file: every key with its type, bounds and meaning."""
    flags = flags_schema()
    defs: dict[str, Any] = {kind: flags["$defs"][kind] for kind in KINDS}
    defs["flags"] = {
        **defs["flags"],
        "properties": {**_others(flags), **defs["flags"]["properties"], **MODEL},
    }
    top = StudyFile.model_json_schema()
    for name, kind in BLOCKS.items():
        found = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        defs |= found.pop("$defs", {})
        defs[name] = found
    train = {**defs["train"], "required": []}
    lists = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True}}
    shared, changed = {**START, **PRESET}, {**START, "train": train}
    base = [_closed({**_names(defs, kind), **shared}) for kind in KINDS] + [_of_pairs(shared)]
    own = [_closed({**_names(defs, kind), **changed}) for kind in KINDS] + [_of_pairs(changed)]
    properties = top["properties"] | {
        "base": {"anyOf": base, "description": "The flags that all variants share."},
        "data": {"$ref": "#/$defs/data"},
        "objective": _objective(defs),
        "train": {"$ref": "#/$defs/train"},
        "evaluate": {"$ref": "#/$defs/evaluate"},
        "match": {"anyOf": [{"enum": ["params", "flops", "tokens", "none"]}, {"$ref": "#/$defs/match"}]},
        "compare": {
            "type": "object",
            "description": "The flags that each variant changes; the first variant is the baseline.",
            "additionalProperties": {"anyOf": [*own, {"type": "null"}]},
            "minProperties": 1,
        },
        "grid": {**lists, "description": "Values of flags; every combination is run with every variant."},
        "factors": {**lists, "description": FACTORS},
        "tune": {
            **lists,
            "description": "Values that are tuned for every variant; the best by validation is reported.",
        },
        "seeds": _seeds(),
    }
    return {
        "$schema": flags["$schema"],
        "title": "flagformer study",
        "type": "object",
        "properties": properties,
        "required": ["name", "base", "data", "train"],
        "additionalProperties": False,
        "$defs": defs,
    }


def _objective(defs: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of an objective: its name, or its settings."""
    known = next(one for one in defs["objective"]["oneOf"] if "discriminator" in one)
    short = {"anyOf": [{"enum": list(known["discriminator"]["mapping"])}, {"pattern": f"^{PATH.pattern}$"}]}
    options: list[dict[str, Any]] = [
        {"type": "string", **short}, {"$ref": "#/$defs/objective"}, {"type": "null"}
    ]  # fmt: skip
    text = "The objective of training; default: that of `model` and the data."
    return {"anyOf": options, "description": text}


def _others(flags: dict[str, Any]) -> dict[str, Any]:
    """Return the flags of models of one row that a language model does not have."""
    found: dict[str, Any] = {}
    for kind in ("classifier", "continuous"):
        found |= {name: one for name, one in flags["$defs"][kind]["properties"].items() if "$ref" not in one}
    names = sorted({*RENAMED, *TRANSLATED, *REFUSED, "shift_tokens"})
    return {**{name: {"description": "an argument of routing-transformer"} for name in names}, **found}


def _of_pairs(more: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of the flags of an encoder-decoder; `flagformer.build` checks those with a prefix."""
    kinds = (WHOLE["xtransformer"], WHOLE["memformer"])
    own: dict[str, Any] = {param.flag.name: {} for kind in kinds for param in read_params(kind)}
    return {
        "type": "object",
        "properties": {"model": {"enum": list(PAIRS)}, **own, **more},
        "patternProperties": {"^(enc|dec)_": {}},
        "additionalProperties": False,
    }


def _names(defs: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return every flag with a reference to its schema."""
    return {name: {"$ref": f"#/$defs/{kind}/properties/{name}"} for name in defs[kind]["properties"]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _seeds() -> dict[str, Any]:
    seed = {"type": "integer", "minimum": 0}
    many = {"type": "array", "items": seed, "minItems": 1, "maxItems": MOST_SEEDS, "uniqueItems": True}
    return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_SEEDS}, many]}
