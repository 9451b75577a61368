"""Every choice that the catalogue offers, as flags that can be set: what pairs are made of.

A choice is a filler with a selector, a flag of the plan, or a kind of model. The table is derived, so that a
new component is in it the moment the catalogue knows it.
"""

from __future__ import annotations

import types
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Union, get_args, get_origin

from flagformer.flags import CATALOGUE, Component, Param
from flagformer.wrappers.build import MODELS

# A small model of bytes on which every choice is possible.
BASE: dict[str, Any] = {
    "model": "decoder", "num_tokens": 256, "max_seq_len": 32,
    "dim": 32, "depth": 2, "heads": 4, "attn_dim_head": 8,
}  # fmt: skip
# Values that no rule would find: stacks with as many sublayers as the base has, values wider than what
# is turned.
VALUES: dict[str, Any] = {
    "custom_layers": ("a", "a", "f", "f"),
    "sandwich_coef": 1,
    "layers_execute_order": (0, 1, 2, 3, 2, 3),
    "attn_value_dim_head": 12,
}
# What has to be said with a choice, where no other choice says it.
WITH: dict[str, dict[str, Any]] = {
    name: {"cross_attend": True}
    for name in (
        "num_memory_slots",
        "cross_residual_attn",
        "cross_attn_tokens_dropout",
        "cross_attn_zero_init_output",
        "context_shared_qk",
    )
} | {
    "attn_rotary_embed_values": {"rotary_pos_emb": True},
    # windows that leave something out of a few tokens
    "n_local_attn_heads": {"local_attn_window_size": 3},
    "num_clusters": {"window_size": 2},
    "context_num_clusters": {"cross_attend": True, "context_window_size": 2},
    "ff_pkm": {"pkm_num_keys": 8},
}
# Other flags that decide the same.
INSTEAD: dict[str, set[str]] = {
    "cross_attend": {"only_cross", "custom_layers"},
    "rotary_pos_emb": {"rotary_xpos"},
}
# What a choice takes out of the base.
WITHOUT: dict[str, tuple[str, ...]] = {"custom_layers": ("depth",)}


@dataclass(frozen=True)
class Choice:
    """One choice.

    Attributes:
        name: as users say it: `rotary_pos_emb`, `pre_norm=False`.
        flags: what selects it.
        beside: what has to be said with it, where no other choice says it.
        without: flags of the base that it replaces.
        component: the filler; None for a flag of the plan or a kind of model.
    """

    name: str
    flags: Mapping[str, Any]
    beside: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    component: Component | None = field(default=None, compare=False)


def choices() -> tuple[Choice, ...]:
    """Every choice, in the order of the catalogue; the kinds of model first."""
    kinds = [Choice(f"model={kind}", {"model": kind}) for kind in MODELS if kind != BASE["model"]]
    found = [*kinds, *(choice for item in CATALOGUE for choice in _of(item))]
    return tuple({choice.name: choice for choice in reversed(found)}.values())[::-1]


def pairs() -> Iterator[tuple[Choice, Choice]]:
    """Every two choices, but for two values of one flag, and a choice with what has to be said beside it."""
    for first, second in combinations(choices(), 2):
        said = [{*choice.flags, *choice.beside} for choice in (first, second)]
        if not set(first.flags) & said[1] and not said[0] & set(second.flags):
            yield first, second


def settings(*chosen: Choice) -> dict[str, Any]:
    """The flags of a small model with these choices, for `flagformer.build`."""
    left_out = {name for choice in chosen for name in choice.without}
    flags = {name: value for name, value in BASE.items() if name not in left_out}
    for choice in chosen:
        flags |= choice.flags
    for name, value in (item for choice in chosen for item in choice.beside.items()):
        if not INSTEAD.get(name, set()) & set(flags):
            flags[name] = value
    return flags


def _of(item: Component) -> list[Choice]:
    params = {param.flag.name: param for param in item.params}
    if item.slot == "plan":
        return [_choice(name, param) for name, param in params.items() if name not in BASE]
    if item.select is None:
        return []
    if item.when is not ...:
        return [Choice(item.say(), {item.select: item.when}, component=item)]
    return [_choice(item.select, params.get(item.select), item)]


def _choice(name: str, param: Param | None, item: Component | None = None) -> Choice:
    if name in VALUES:
        value = VALUES[name]
    else:
        value = True if param is None else _value(param)
    return Choice(name, {name: value}, WITH.get(name, {}), WITHOUT.get(name, ()), item)


def _value(param: Param) -> Any:
    """A small value that is not the one taken when nothing is said."""
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
    raise TypeError(f"no example value for `{param.flag.name}`: add one to VALUES")


def kinds_of(hint: Any) -> tuple[Any, ...]:
    """The types that a flag's type allows."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
