"""`key=value` overrides of a study file: `train.steps=50 compare.rotary.rotary_emb_dim=16`."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from flagformer.study.mistakes import Mistake, StudyFileError, shown
from flagformer.study.source import Route, Source, parse_value


def apply_overrides(source: Source, overrides: Sequence[str]) -> None:
    """Writes each `a.b=value` into the file's data; the value is read as YAML, `a.b=` is null.

    Raises:
        StudyFileError: an override without `=`, with an empty key, a value that is no YAML, or a key below a
            plain value.
    """
    mistakes: list[Mistake] = []
    for typed in overrides:
        message = _apply(source, typed)
        if message:
            mistakes.append(Mistake(1 << 30, f"override `{typed}`", message))
    if mistakes:
        raise StudyFileError(mistakes)


def _apply(source: Source, typed: str) -> str:
    """Applies one override; returns what is wrong with it, or nothing."""
    key, equals, text = typed.partition("=")
    route: Route = tuple(part.strip() for part in key.split("."))
    if not equals:
        return "must be written `key=value`, for example `train.steps=50`"
    if not all(route):
        return "has an empty key; write `key=value`, for example `train.steps=50`"
    try:
        value = parse_value(text)
    except (yaml.YAMLError, StudyFileError, RecursionError):
        return f"has a value that is not valid YAML: {shown(text)}"
    place = source.data
    for depth, part in enumerate(route[:-1], start=1):
        below = place.get(part)
        if below is None:
            below = place[part] = {}
        if not isinstance(below, dict):
            return f"`{'.'.join(route[:depth])}` is {shown(below)}, which has no key `{route[depth]}`"
        place = below
    place[route[-1]] = value
    source.overrides[route] = typed
    return ""
