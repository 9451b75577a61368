"""Validation of one block of a study file with its pydantic type; errors have the lines of the file."""

from __future__ import annotations

import json
from typing import Any, get_args

from pydantic import BaseModel, TypeAdapter, ValidationError

from flagformer.lab.imports import KNOWN, OWN
from flagformer.lab.study.config_errors import ConfigError, key_of, repr_short
from flagformer.lab.study.source import Route, Source
from flagformer.lab.study.words import models_of, suggestion


def check_block(source: Source, route: Route, kind: Any, value: object) -> tuple[Any, list[ConfigError]]:
    """Validate `value`, at `route` of the file, as `kind`: a model or a union of models.

    YAML distinguishes numbers from strings, so types are strict as in JSON: `steps: "50"` and `steps: true`
    are errors.

    Returns:
        (the instance, []) or (None, all errors).
    """
    if not isinstance(value, dict):
        name = ".".join(route)
        return None, [
            source.mistake(
                route, f"`{name}` must be a mapping of `key: value` lines, but is {repr_short(value)}"
            )
        ]
    try:
        return TypeAdapter(kind).validate_json(json.dumps(value), strict=True), []
    except ValidationError as error:
        found = [{**item, "loc": _without_tags(item["loc"])} for item in error.errors(include_url=False)]
        return None, [_mistake(source, route, kind, value, item) for item in found]


def _without_tags(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """pydantic's location without tags of unions, and without its mark of a wrong key."""
    return tuple(part for part in location if part not in (KNOWN, OWN, "[key]"))


def _mistake(source: Source, route: Route, kind: Any, value: object, item: Any) -> ConfigError:
    full = (*route, *_route_in(value, item["loc"]))
    sentence = _sentence(full, kind, item)
    # an error of several keys together is reported for the block; its message begins with the key to change
    key = key_of(sentence)
    if item["type"] == "value_error" and isinstance(value, dict) and key in value and not item["loc"]:
        full = (*full, key)
    return source.mistake(full, sentence)


def _sentence(route: Route, kind: Any, item: Any) -> str:
    name, last = ".".join(route), route[-1] if route else ""
    problem, text = item["type"], item["msg"]
    if problem == "missing":
        index = item["loc"][-1]
        if isinstance(index, int):  # a value of a tuple
            return f"`{name}` must have at least {index + 1} values, but is {repr_short(item['input'])}"
        return f"`{name}` is missing"
    if problem == "extra_forbidden":
        block = route[-2] if len(route) > 1 else ""
        return f"`{name}` is not known{suggestion(block, last, _field_names(kind, item['loc']))}"
    if problem == "union_tag_not_found":
        return f"`{name}.{_tag_name(item)}` is missing; it must be one of {_tags(kind, item)}"
    if problem == "union_tag_invalid":
        tag = _tag_name(item)
        return f"`{name}.{tag}` must be one of {_tags(kind, item)}, but is {repr_short(item['ctx']['tag'])}"
    if problem in ("value_error", "assertion_error"):
        text = text.partition(", ")[2]
        return text if f"`{last}`" in text or f"`{name}`" in text else f"`{name}`: {text}"
    if text.startswith("Input should be "):
        wanted = text.removeprefix("Input should be ").partition(", unable")[0]
        return f"`{name}` must be {wanted}, but is {repr_short(item['input'])}"
    return f"`{name}`: {text[0].lower()}{text[1:]}, but is {repr_short(item['input'])}"


def _route_in(value: object, location: tuple[int | str, ...]) -> Route:
    """pydantic's location without the names of union members, which are not in the file."""
    route: list[str] = []
    for depth, part in enumerate(location):
        last = depth == len(location) - 1
        if isinstance(value, dict) and (part in value or last):
            route.append(str(part))
            value = value.get(str(part))
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            route.append(str(part))
            value = value[part]
    return tuple(route)


def _field_names(kind: Any, location: tuple[int | str, ...]) -> set[str]:
    """The valid names next to an unknown one; for a union, of the member whose tag `location` starts with."""
    models = models_of(kind)
    tagged = [model for model in models if len(models) > 1 and location[0] in _literals(model)]
    names: set[str] = set()
    for model in tagged or models:
        names |= set(model.model_fields)
    for part in location[:-1]:
        inner = [inside for model in models for inside in models_of(_annotation(model, part))]
        if inner:
            return _field_names(inner[0], location[1:])
    return names


def _annotation(model: type[BaseModel], name: int | str) -> Any:
    field = model.model_fields.get(str(name))
    return field.annotation if field else None


def _literals(model: type[BaseModel]) -> set[object]:
    return {value for field in model.model_fields.values() for value in get_args(field.annotation)}


def _tag_name(item: Any) -> str:
    return item["ctx"]["discriminator"].strip("'")


def _tags(kind: Any, item: Any) -> str:
    """The names of the members of the union at the location of an error."""
    models = models_of(kind)
    for part in item["loc"]:
        models = [inner for model in models for inner in models_of(_annotation(model, part))] or models
    names = [tag for model in models for tag in get_args(_annotation(model, _tag_name(item)))]
    return ", ".join(map(str, dict.fromkeys(names)))
