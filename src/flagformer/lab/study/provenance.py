"""The origin of each value of a resolved study: a line of the file, an override, a default, or matching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from flagformer.lab.study.design import TRAIN, Study
from flagformer.lab.study.source import Route, Source, parse_source

MATCHED, DEFAULT = "matched", "default"


def provenance(study: Study, source: Source, knobs: Mapping[str, str]) -> dict[str, str]:
    """The origin of every value of the resolved study, by its key (`train.steps`).

    Args:
        knobs: variant -> the knob that matching changed.
    """
    matched = {
        ("compare", name, *route)
        for name, knob in knobs.items()
        for route in (_knob_route(knob), (f"enc_{knob}",), (f"dec_{knob}",))
    }
    return {
        ".".join(route): MATCHED if route in matched else _origin(source, route)
        for route in _leaves(study.resolved(), ())
    }


def annotated(study: Study, origins: Mapping[str, str]) -> str:
    """The resolved study as YAML, every value with its origin as a comment."""
    data = study.resolved()
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False)
    lines = text.splitlines()
    line_of = parse_source(text, study.name).lines
    for route in _leaves(data, ()):
        origin = origins.get(".".join(route))
        line = line_of.get(route)
        if origin and line:
            lines[line - 1] += f"  # {origin}"
    commented = "\n".join(lines) + "\n"
    # a value that YAML writes over several lines cannot have a comment
    same = parse_source(commented, study.name).data == parse_source(text, study.name).data
    return commented if same else text


def _knob_route(knob: str) -> Route:
    return ("train", knob) if knob == "steps" else (knob.removeprefix(TRAIN),)


def _origin(source: Source, route: Route) -> str:
    """The origin of the value or, for an element of a list or mapping, of the nearest enclosing value."""
    if route[0] == "tune" and route not in source.lines:
        route = ("tune", ".".join(route[1:]).removeprefix(TRAIN))  # the short form of a key
    if route == ("match", "what") and route not in source.lines:
        route = ("match",)  # `match: params`
    for end in range(len(route), 0, -1):
        head = route[:end]
        if head in source.overrides:
            return f"override {source.overrides[head]}"
        if head in source.lines and (end == len(route) or _plain(source, head)):
            return f"{source.name}:{source.lines[head]}"
    return DEFAULT


def _plain(source: Source, route: Route) -> bool:
    """Whether the file has a single value at the route, as `seeds: 3` for the whole list."""
    value: Any = source.data
    if route == ("match",):
        return False  # `match: params` sets none of the other keys
    for part in route:
        value = value.get(part) if isinstance(value, dict) else None
    return not isinstance(value, dict) and value is not None


def _leaves(value: object, route: Route) -> Iterable[Route]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*route, str(key)))
    else:
        yield route
