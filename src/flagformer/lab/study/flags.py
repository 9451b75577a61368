"""Errors in the flags of a study's variants, with their lines."""

from __future__ import annotations

from typing import Any

import flagformer
from flagformer.flags import FlagError
from flagformer.lab.study.config_errors import ConfigError
from flagformer.lab.study.design import own_flags
from flagformer.lab.study.source import Source
from flagformer.lab.study.words import home

# Placeholders for values of the data, if the data block has errors, by the kind of model.
STAND_IN = {"num_tokens": 256, "max_seq_len": 64}
PAIR = {f"{half}_{name}": value for half in ("enc", "dec") for name, value in STAND_IN.items()}
STAND_INS: dict[str, dict[str, int]] = {
    "vit": {"image_size": 8, "channels": 1, "num_classes": 10},
    "classifier": {**STAND_IN, "num_classes": 10},
    "continuous": {"max_seq_len": 64, "dim_in": 1, "dim_out": 1},
    **dict.fromkeys(("xtransformer", "memformer", "routing_encdec"), PAIR),
}


ONE_OBJECTIVE = (
    "`objective` must be outside `compare`, one for all variants, because losses of different targets cannot "
    "be compared; write a study for each objective"
)


def flag_mistakes(source: Source) -> list[ConfigError]:
    """All invalid flags of a study or training file that has errors in other blocks, without reading data."""
    base, compare = source.data.get("base"), source.data.get("compare", {"": {}})
    if not isinstance(base, dict) or not isinstance(compare, dict):
        return []
    mistakes = []
    for variant, own in compare.items():
        if not isinstance(own, dict | None):
            continue
        try:
            flags = {**base, **own_flags(own or {})}
            if {"from", "preset"} & flags.keys():  # their flags are not known here
                continue
            flagformer.check({**stand_in(flags.get("model")), **flags})
        except FlagError as error:
            mistakes += [flag_mistake(source, variant, finding) for finding in error.findings]
    return list(dict.fromkeys(mistakes))


def stand_in(kind: object) -> dict[str, int]:
    """Placeholders for the flags that follow from the data, for a kind of model."""
    return STAND_INS.get(kind, STAND_IN) if isinstance(kind, str) else STAND_IN


def flag_mistake(source: Source, variant: str, finding: Any) -> ConfigError:
    """The error at the flag's line in the variant or the base, else at the variant's line."""
    own = ("compare", variant, finding.flag)
    if source.has(own) and finding.is_unknown and finding.flag == "objective":
        return source.mistake(own, f"variant `{variant}`: {ONE_OBJECTIVE}")
    if source.has(own):
        return source.mistake(own, f"variant `{variant}`: {message_of(finding)}")
    if finding.flag in source.data.get("base", {}):
        return source.mistake(("base", finding.flag), message_of(finding))
    return source.mistake(("compare", variant), f"variant `{variant}`: {message_of(finding)}")


def message_of(finding: Any) -> str:
    """The message for an invalid flag; for a setting of another block, the block where it belongs."""
    advice = home(finding.flag, "base") if finding.is_unknown else ""
    return f"`{finding.flag}` is not a flag; {advice}" if advice else str(finding.message)
