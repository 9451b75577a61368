"""Every choice of the catalogue, as flags; tests and `docs/flags.md` build all pairs of them.

A choice is a component with a selector, a flag of the plan, a flag of `Dims` with an example, or a kind of
model. New components of the catalogue are included automatically.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations
from typing import Any, Union, get_args, get_origin

from flagformer.flags import ANY, CATALOGUE, Component, Param
from flagformer.models.build import MODELS

# A small byte-level model that supports every choice.
BASE: dict[str, Any] = {
    "model": "decoder", "num_tokens": 256, "max_seq_len": 32,
    "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8,
}  # fmt: skip
# Values that cannot be derived: stacks with as many sublayers as BASE, values wider than the rotated part.
VALUES: dict[str, Any] = {
    "custom_layers": ("a", "a", "f", "f"),
    "sandwich_coef": 1,
    "layers_execute_order": (0, 1, 2, 3, 2, 3),
    "attn_value_dim_head": 12,
}
# Flags that must be set with the selector of a component, which has no declaration of its own.
EXTRA: dict[str, dict[str, Any]] = {
    "attn_rotary_embed_values": {"rotary_pos_emb": True},
    "ff_pkm": {"pkm_num_keys": 8},
}
# Other flags that set the same.
INSTEAD: dict[str, set[str]] = {
    "cross_attend": {"only_cross", "custom_layers"},
    "rotary_pos_emb": {"rotary_xpos"},
}
# Flags of BASE that a choice replaces.
WITHOUT: dict[str, tuple[str, ...]] = {"custom_layers": ("depth",)}


@dataclass(frozen=True)
class Choice:
    """One choice.

    Attributes:
        name: as users type it: `rotary_pos_emb`, `pre_norm=False`.
        flags: the flags that select it.
        extra: flags that must be set with it, unless another choice sets them.
        without: flags of `BASE` that it replaces.
        component: None for a flag of the plan or of `Dims`, or a kind of model.
    """

    name: str
    flags: Mapping[str, Any]
    extra: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    component: Component | None = field(default=None, compare=False)


@cache
def choices() -> tuple[Choice, ...]:
    """Return every choice, the kinds of model first, then in the order of the catalogue."""
    kinds = [Choice(f"model={kind}", {"model": kind}) for kind in MODELS if kind != BASE["model"]]
    found = [*kinds, *(choice for item in CATALOGUE for choice in _of(item))]
    return tuple({choice.name: choice for choice in reversed(found)}.values())[::-1]


def pairs() -> Iterator[tuple[Choice, Choice]]:
    """Yield all pairs of choices, except two values of one flag and a choice with its extra flags."""
    for first, second in combinations(choices(), 2):
        names = [{*choice.flags, *choice.extra} for choice in (first, second)]
        if not set(first.flags) & names[1] and not names[0] & set(second.flags):
            yield first, second


def settings(*chosen: Choice) -> dict[str, Any]:
    """Return the flags of a small model with these choices, for `flagformer.build`."""
    left_out = {name for choice in chosen for name in choice.without}
    flags = {name: value for name, value in BASE.items() if name not in left_out}
    for choice in chosen:
        flags |= choice.flags
    for name, value in (item for choice in chosen for item in choice.extra.items()):
        if not INSTEAD.get(name, set()) & set(flags):
            flags[name] = value
    return flags


def _of(item: Component) -> list[Choice]:
    params = {param.flag.name: param for param in item.params}
    if item.slot == "plan":
        return [_choice(name, param) for name, param in params.items() if name not in BASE]
    if item.slot == "dims":
        return [_choice(name, param) for name, param in params.items() if param.flag.example is not None]
    if item.select is None:
        return []
    if item.when is not ANY:
        return [Choice(item.say(), {item.select: item.when}, component=item)]
    return [_choice(item.select, params.get(item.select), item)]


def _choice(name: str, param: Param | None, item: Component | None = None) -> Choice:
    if name in VALUES:
        value = VALUES[name]
    else:
        value = True if param is None else _value(param)
    extra = {**EXTRA.get(name, {}), **partners(item, param)}
    return Choice(name, {name: value}, extra, WITHOUT.get(name, ()), item)


def partners(item: Component | None, param: Param | None) -> dict[str, Any]:
    """Return the flags to set with a flag: those that its component needs, and those that it declares."""
    crossed = {"cross_attend": True} if item is not None and item.kind == "c" else {}
    return {**crossed, **({} if param is None else param.flag.example_with)}


def _value(param: Param) -> Any:
    """Return the example of the flag, or a small value other than the default."""
    if param.flag.example is not None:
        return param.flag.example
    for kind in kinds_of(param.type):
        options = [value for value in param.flag.choices if value not in (None, param.default)]
        if options:
            return options[0]
        if kind is bool:
            return not param.default
        if kind is int:
            return max(2, int(param.flag.ge or 0))
        if kind is float:
            return max(0.25, float(param.flag.ge or 0))
    raise TypeError(f"no example value for `{param.flag.name}`: declare `Flag(example=...)`")


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the type itself."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
