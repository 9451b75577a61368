"""Flags: what users type, what it means, and why it cannot be. Imports no torch."""

from flagformer.flags.errors import Finding, FlagError, Gathered, nearest, with_prefix
from flagformer.flags.flag import Component, Flag, Need, Param, component
from flagformer.flags.names import split_prefixes
from flagformer.flags.registry import CATALOGUE, Registry
from flagformer.flags.resolve import Module, Resolved, resolve
from flagformer.flags.slots import LAYER_SCOPES, MODEL_SCOPES, SLOTS, Slot
from flagformer.flags.spec import Ready, Spec

__all__ = [
    "CATALOGUE", "LAYER_SCOPES", "MODEL_SCOPES", "SLOTS", "Component", "Finding", "Flag", "FlagError",
    "Gathered", "Module", "Need", "Param", "Ready", "Registry", "Resolved", "Slot", "Spec", "component",
    "nearest", "resolve", "split_prefixes", "with_prefix",
]  # fmt: skip
