"""The flags that a whole model declares on its own constructor, beside those of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flagformer.flags import Finding
from flagformer.flags.flag import read_params
from flagformer.flags.values import normalize, validation_error


@dataclass(frozen=True)
class FlagGroup:
    """The flags of a stack or model inside a whole one, for schemas and manuals.

    Attributes:
        prefix: what stands in front of each of them.
        scopes: which flags of the catalogue they are.
        decided: the flags that the whole model decides.
    """

    prefix: str
    scopes: frozenset[str]
    decided: frozenset[str]


def own_flag_errors(cls: type, given: Mapping[str, Any]) -> list[Finding]:
    """A finding for each flag of the constructor that is missing or has a value that cannot be."""
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
