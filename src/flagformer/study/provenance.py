"""Where each value of a resolved study comes from: a line of the file, an override, a default, matching."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from flagformer.study.design import TRAIN, Study
from flagformer.study.source import Route, Source, parse_source

MATCHED, STANDARD = "matched", "default"


def provenance(study: Study, source: Source, knobs: Mapping[str, str]) -> dict[str, str]:
    """`train.steps` -> where its value comes from, for every value of the resolved study.

    Args:
        knobs: variant -> the knob that matching turned.
    """
    turned = {("compare", name, *_knob_route(knob)) for name, knob in knobs.items()}
    return {
        ".".join(route): MATCHED if route in turned else _origin(source, route)
        for route in _leaves(study.resolved(), ())
    }


def annotated(study: Study, origins: Mapping[str, str]) -> str:
    """The resolved study as YAML, every value with a comment that says where it comes from."""
    data = study.resolved()
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=10_000, default_flow_style=False)
    lines = text.splitlines()
    places = parse_source(text, study.name).lines
    for route in _leaves(data, ()):
        origin = origins.get(".".join(route))
        place = places.get(route)
        if origin and place:
            lines[place - 1] += f"  # {origin}"
    said = "\n".join(lines) + "\n"
    # a value that YAML writes over several lines takes no comment
    return said if parse_source(said, study.name).data == parse_source(text, study.name).data else text


def _knob_route(knob: str) -> Route:
    return ("train", knob) if knob == "steps" else (knob.removeprefix(TRAIN),)


def _origin(source: Source, route: Route) -> str:
    """The nearest place that names the value or, for a list or mapping written as one, what it stands in."""
    if route[0] == "tune" and route not in source.lines:
        route = ("tune", ".".join(route[1:]).removeprefix(TRAIN))  # as it may have been typed
    if route == ("match", "what") and route not in source.lines:
        route = ("match",)  # `match: params`
    for end in range(len(route), 0, -1):
        head = route[:end]
        if head in source.overrides:
            return f"override {source.overrides[head]}"
        if head in source.lines and (end == len(route) or _plain(source, head)):
            return f"{source.name}:{source.lines[head]}"
    return STANDARD


def _plain(source: Source, route: Route) -> bool:
    """Whether the file has one value at the route, as `seeds: 3` stands for the whole list."""
    value: Any = source.data
    if route == ("match",):
        return False  # `match: params` says nothing of its other keys
    for part in route:
        value = value.get(part) if isinstance(value, dict) else None
    return not isinstance(value, dict) and value is not None


def _leaves(value: object, route: Route) -> Iterable[Route]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*route, str(key)))
    else:
        yield route
