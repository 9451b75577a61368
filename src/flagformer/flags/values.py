"""Validation of flag values: types, choices and bounds. Imports no torch."""

from __future__ import annotations

import math
import types
from typing import Any, Literal, Union, get_args, get_origin

from flagformer.flags.flag import Param

LARGEST = 2**31  # larger sizes overflow in torch before memory runs out


def type_name(kind: Any) -> str:
    """Return the type as it is written in Python: `int | None`."""
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return " | ".join(type_name(part) for part in get_args(kind))
    if origin is Literal:
        return " | ".join(repr(value) for value in get_args(kind))
    if kind is type(None):
        return "None"
    return getattr(kind, "__name__", str(kind)) if origin is None else str(kind)


def _fits(value: Any, kind: Any) -> bool:
    origin = get_origin(kind)
    if kind is Any:
        return True
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    if origin is dict:
        of_key, of_value = get_args(kind)
        pairs = value.items() if isinstance(value, dict) else ((None, None),)
        return all(_fits(name, of_key) and _fits(item, of_value) for name, item in pairs)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(kind)[0]) for item in value)
    if kind is type(None):
        return value is None
    if kind is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, kind)


def validation_error(param: Param, value: Any) -> str:
    """Return the error of `value` as a clause that follows the flag's name; empty if it is valid."""
    flag = param.flag
    if not _fits(value, param.type):
        return f"must be {type_name(param.type)}, but is {value!r} ({type(value).__name__})"
    if flag.choices and value not in flag.choices:
        return f"must be one of {', '.join(map(repr, flag.choices))}, but is {value!r}"
    if isinstance(value, dict):
        small = [name for name, item in value.items() if flag.ge is not None and item < flag.ge]
        return (
            f"must have values of at least {flag.ge}, but {small[0]!r} is {value[small[0]]}" if small else ""
        )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if flag.ge is not None and value < flag.ge:
            return f"must be at least {flag.ge}, but is {value!r}"
        if flag.lt is not None and value >= flag.lt:
            return f"must be below {flag.lt}, but is {value!r}"
        if abs(value) >= LARGEST:
            return f"must be below {LARGEST}, but is {value!r}"
    return ""


def normalize(value: Any) -> Any:
    """Convert lists to tuples, as JSON, YAML and command lines have no tuples."""
    if isinstance(value, dict):
        return {name: normalize(item) for name, item in value.items()}
    return tuple(normalize(item) for item in value) if isinstance(value, (list, tuple)) else value
