"""Flags: parsing, validation and resolution of a flat dictionary of settings. Imports no torch."""

from flagformer.flags.errors import ErrorCollector, Finding, FlagError, nearest, with_prefix
from flagformer.flags.flag import ANY, NEEDS, Component, Flag, Param, Requirement, component
from flagformer.flags.import_paths import allowed_modules, only_allowed
from flagformer.flags.names import split_prefixes
from flagformer.flags.registry import CATALOGUE, Registry
from flagformer.flags.resolve import Resolved, SublayerSpec, resolve
from flagformer.flags.slots import LAYER_SCOPES, MODEL_SCOPES, SLOTS, Slot, open_slots
from flagformer.flags.spec import Instance, Place, Spec

__all__ = [
    "ANY",
    "CATALOGUE",
    "LAYER_SCOPES",
    "MODEL_SCOPES",
    "NEEDS",
    "SLOTS",
    "Component",
    "ErrorCollector",
    "Finding",
    "Flag",
    "FlagError",
    "Instance",
    "Param",
    "Place",
    "Registry",
    "Requirement",
    "Resolved",
    "Slot",
    "Spec",
    "SublayerSpec",
    "allowed_modules",
    "component",
    "nearest",
    "only_allowed",
    "open_slots",
    "resolve",
    "split_prefixes",
    "with_prefix",
]  # fmt: skip
