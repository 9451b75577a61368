"""`key=value` overrides of a study file: `train.steps=50 compare.rotary.rotary_emb_dim=16`.

`base.depth=2,4` and `train.lr=1e-3,3e-3` become `factors` of a study with several variants, else its `grid`;
`compare.rotary.rotary_emb_dim=16,32` makes two variants of one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import yaml

from flagformer.lab.study.config_errors import ConfigError, StudyFileError, repr_short
from flagformer.lab.study.source import Route, Source, parse_value

OUTSIDE = re.compile(r"""(?:[^,\[\]{}"']|\[[^\]]*\]|\{[^}]*\}|"[^"]*"|'[^']*')+""")


def apply_overrides(source: Source, overrides: Sequence[str]) -> None:
    """Write each `a.b=value` into the file's data; values are YAML, `a.b=` is null, `a.b=1,2` is a sweep.

    Raises:
        StudyFileError: for an override without `=`, with an empty key or invalid YAML, or with a key below a
            scalar.
    """
    mistakes: list[ConfigError] = []
    for typed in overrides:
        message = _apply(source, typed)
        if message:
            mistakes.append(ConfigError(1 << 30, f"override `{typed}`", message))
    if mistakes:
        raise StudyFileError(mistakes)


def _apply(source: Source, typed: str) -> str:
    """Apply one override; return the error message, or an empty string."""
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
    """The parts between commas outside brackets and quotes."""
    parts = OUTSIDE.findall(text)
    return [part.strip() for part in parts] if ",".join(parts) == text and len(parts) > 1 else [text]


def _write(source: Source, route: Route, value: object, typed: str) -> str:
    mapping = source.data
    for depth, part in enumerate(route[:-1], start=1):
        child = mapping.get(part)
        if child is None:
            child = mapping[part] = {}
        if not isinstance(child, dict):
            return f"`{'.'.join(route[:depth])}` is {repr_short(child)}, which has no key `{route[depth]}`"
        mapping = child
    mapping[route[-1]] = value
    source.overrides[route] = typed
    return ""


def _sweep(source: Source, route: Route, values: list[tuple[str, object]], typed: str) -> str:
    if route[0] in ("base", "train") and len(route) == 2:
        key = route[1] if route[0] == "base" else ".".join(route)
        compare = source.data.get("compare")
        block = "factors" if isinstance(compare, dict) and len(compare) > 1 else "grid"
        return _write(source, (block, key), [value for _, value in values], typed)
    if route[0] == "compare" and len(route) > 2:
        return _split(source, route, values, typed)
    wanted = f"a list is written in brackets, `{'.'.join(route)}=[...]`"
    return f"a sweep must vary keys of `base`, `train` or one variant, not `{route[0]}`; {wanted}"


def _split(source: Source, route: Route, values: list[tuple[str, object]], typed: str) -> str:
    """Replace a variant by one variant for each value."""
    compare, name = source.data.get("compare"), route[1]
    if not isinstance(compare, dict) or name not in compare:
        known = ", ".join(compare) if isinstance(compare, dict) else "none"
        return f"`compare.{name}` is not in the file; variants to sweep: {known}"
    if len({text for text, _ in values}) < len(values):
        return f"must name each value once, but names {', '.join(text for text, _ in values)}"
    names = [f"{name} {'.'.join(route[2:])}={text}" for text, _ in values]
    expanded: dict[str, object] = {}
    for variant, own in compare.items():
        expanded |= dict.fromkeys(names, own) if variant == name else {variant: own}
    for new_name, (_, value) in zip(names, values):
        for old_route, line in list(source.lines.items()):
            if old_route[:2] == route[:2]:
                source.lines["compare", new_name, *old_route[2:]] = line
        own = expanded[new_name]
        expanded[new_name] = dict(own) if isinstance(own, dict) else own
        source.data["compare"] = expanded
        error = _write(source, ("compare", new_name, *route[2:]), value, typed)
        if error:
            return error
    return ""
