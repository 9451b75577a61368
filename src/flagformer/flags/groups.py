"""Flags of a whole model: those of its constructor, and those of its parts after a prefix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagformer.flags import CATALOGUE, MODEL_SCOPES, SLOTS
from flagformer.flags.errors import Finding
from flagformer.flags.flag import read_params
from flagformer.flags.values import normalize, validation_error


@dataclass(frozen=True)
class FlagGroup:
    """The flags of a stack or model inside another model, for schemas and manuals.

    Attributes:
        prefix: the prefix of each flag.
        scopes: the scopes of the catalogue to which they belong.
        decided: the flags that the outer model fixes.
    """

    prefix: str
    scopes: frozenset[str]
    decided: frozenset[str]


def own_flags(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of the constructor among `given`, such as its local variables or all flags of a model."""
    names = [param.flag.name for param in read_params(cls)]
    return {name: given[name] for name in names if name in given}


def own_flag_errors(cls: type, given: Mapping[str, Any]) -> list[Finding]:
    """A finding for each flag of the constructor that is missing or has an invalid value."""
    findings = []
    for param in read_params(cls):
        name = param.flag.name
        if name not in given:
            if param.required:
                findings.append(Finding(name, f"`{name}` is required: {param.flag.doc}"))
            continue
        text = validation_error(param, normalize(given[name]))
        if text:
            findings.append(Finding(name, f"`{name}` {text}"))
    return findings


def names_of_flags() -> set[str]:
    """Every name that may follow a prefix."""
    names = set(CATALOGUE.names(MODEL_SCOPES))
    crossed = {f"cross_{name}" for name in CATALOGUE.crossed()}
    return names | crossed | set(SLOTS)
