"""`key=value` overrides of a study file: `train.steps=50 compare.rotary.rotary_emb_dim=16`.

`base.depth=2,4` and `train.lr=1e-3,3e-3` become axes of the study's `grid`;
`compare.rotary.rotary_emb_dim=16,32` makes two variants of one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from flagformer.study.config_errors import ConfigError, StudyFileError, repr_short
from flagformer.study.source import Route, Source, parse_value

OUTSIDE = re.compile(r"""(?:[^,\[\]{}"']|\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*')+""")


def apply_overrides(source: Source, overrides: Sequence[str]) -> None:
    """Writes each `a.b=value` into the file's data; the value is read as YAML, `a.b=` is null, `a.b=1,2` is a
    sweep.

    Raises:
        StudyFileError: an override without `=`, with an empty key, a value that is no YAML, or a key below a
            plain value.
    """
    mistakes: list[ConfigError] = []
    for typed in overrides:
        message = _apply(source, typed)
        if message:
            mistakes.append(ConfigError(1 << 30, f"override `{typed}`", message))
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
    parts = _parts(text)
    try:
        values = [parse_value(part) for part in parts]
    except (yaml.YAMLError, StudyFileError, RecursionError):
        return f"has a value that is not valid YAML: {repr_short(text)}"
    if len(values) == 1:
        return _write(source, route, values[0], typed)
    return _sweep(source, route, list(zip(parts, values)), typed)


def _parts(text: str) -> list[str]:
    """What stands between the commas that no bracket and no quote encloses."""
    parts = OUTSIDE.findall(text)
    return [part.strip() for part in parts] if ",".join(parts) == text and len(parts) > 1 else [text]


def _write(source: Source, route: Route, value: object, typed: str) -> str:
    place = source.data
    for depth, part in enumerate(route[:-1], start=1):
        below = place.get(part)
        if below is None:
            below = place[part] = {}
        if not isinstance(below, dict):
            return f"`{'.'.join(route[:depth])}` is {repr_short(below)}, which has no key `{route[depth]}`"
        place = below
    place[route[-1]] = value
    source.overrides[route] = typed
    return ""


def _sweep(source: Source, route: Route, values: list[tuple[str, object]], typed: str) -> str:
    if route[0] in ("base", "train") and len(route) == 2:
        key = route[1] if route[0] == "base" else ".".join(route)
        return _write(source, ("grid", key), [value for _, value in values], typed)
    if route[0] == "compare" and len(route) > 2:
        return _split(source, route, values, typed)
    wanted = f"a list is written in brackets, `{'.'.join(route)}=[...]`"
    return f"a sweep varies `base.`, `train.` or one variant's keys, not `{route[0]}`; {wanted}"


def _split(source: Source, route: Route, values: list[tuple[str, object]], typed: str) -> str:
    """Puts a variant for each value where the one variant was."""
    compare, name = source.data.get("compare"), route[1]
    if not isinstance(compare, dict) or name not in compare:
        known = ", ".join(compare) if isinstance(compare, dict) else "none"
        return f"`compare.{name}` is not in the file; variants to sweep: {known}"
    if len({text for text, _ in values}) < len(values):
        return f"must name each value once, but names {', '.join(text for text, _ in values)}"
    names = [f"{name} {'.'.join(route[2:])}={text}" for text, _ in values]
    spread: dict[str, object] = {}
    for variant, own in compare.items():
        spread |= dict.fromkeys(names, own) if variant == name else {variant: own}
    for fresh, (_, value) in zip(names, values):
        for place, line in list(source.lines.items()):
            if place[:2] == route[:2]:
                source.lines["compare", fresh, *place[2:]] = line
        own = spread[fresh]
        spread[fresh] = dict(own) if isinstance(own, dict) else own
        source.data["compare"] = spread
        trouble = _write(source, ("compare", fresh, *route[2:]), value, typed)
        if trouble:
            return trouble
    return ""
