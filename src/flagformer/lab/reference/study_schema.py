"""The JSON schema of study files, for completion and validation in editors.

`flagformer study schema` prints it; `docs/study.schema.json` is a copy.
"""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from flagformer.lab.data.catalogue import DataConfig
from flagformer.lab.reference.schema import schema as flags_schema
from flagformer.lab.study.design import MatchConfig
from flagformer.lab.study.file import MOST_SEEDS, StudyFile
from flagformer.lab.train.config import EvaluateConfig, TrainConfig

BLOCKS: dict[str, Any] = {
    "data": DataConfig, "train": TrainConfig, "evaluate": EvaluateConfig, "match": MatchConfig,
}  # fmt: skip
KINDS = ("flags", "vit")  # models of tokens, models of images
DIRECTORY = "The directory of a published model or of `model.save`, onto which the other flags are grafted."
PATH_AND_DIGEST = {
    "type": "object", "properties": {"path": {"type": "string"}, "digest": {"type": "string"}},
    "required": ["path", "digest"], "additionalProperties": False,
}  # fmt: skip
START = {"from": {"anyOf": [{"type": "string"}, PATH_AND_DIGEST], "description": DIRECTORY}}
PRESET = {"preset": {"type": "string", "description": "A published model, whose flags the others change."}}


def study_schema() -> dict[str, Any]:
    """Return the schema of a study file: every key with its type, bounds and meaning."""
    flags = flags_schema()
    defs: dict[str, Any] = {kind: flags["$defs"][kind] for kind in KINDS}
    top = StudyFile.model_json_schema()
    for name, kind in BLOCKS.items():
        found = TypeAdapter(kind).json_schema(ref_template="#/$defs/{model}")
        defs |= found.pop("$defs", {})
        defs[name] = found
    train = {**defs["train"], "required": []}
    lists = {"type": "object", "additionalProperties": {"type": "array", "minItems": 1, "uniqueItems": True}}
    base = [_closed({**_names(defs, kind), **START, **PRESET}) for kind in KINDS]
    own = [_closed({**_names(defs, kind), **START, "train": train}) for kind in KINDS]
    properties = top["properties"] | {
        "base": {"anyOf": base, "description": "The flags that all variants share."},
        "data": {"$ref": "#/$defs/data"},
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


def _names(defs: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return every flag with a reference to its schema."""
    return {name: {"$ref": f"#/$defs/{kind}/properties/{name}"} for name in defs[kind]["properties"]}


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _seeds() -> dict[str, Any]:
    seed = {"type": "integer", "minimum": 0}
    many = {"type": "array", "items": seed, "minItems": 1, "maxItems": MOST_SEEDS, "uniqueItems": True}
    return {"anyOf": [{"type": "integer", "minimum": 1, "maximum": MOST_SEEDS}, many]}
