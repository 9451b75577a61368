"""Features that flags are tested with: caches, padding, packing, compilation, low precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

from flagformer.flags import CATALOGUE, Component, FlagError, Param
from flagformer.lab.reference.selectors import BASE, choices, kinds_of, partners, settings
from flagformer.models.build import build, check
from flagformer.wrappers.autoregressive import AutoregressiveWrapper

ROWS, LENGTH = 2, 8
SMALL: Mapping[type, tuple[Any, ...]] = {bool: (True, False), int: (6, 3, 2, 256, 1), float: (0.25, 2.0)}


@dataclass(frozen=True)
class Feature:
    """A column of `docs/flags.md`.

    Attributes:
        name: the heading of the column.
        holds: the property that tests check for every flag that supports it.
        flags: the flags that enable it; empty for a way of calling any model.
        call: uses it on a model, which raises an error if it is not supported.
    """

    name: str
    holds: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[Any], object] | None = None


def features() -> tuple[Feature, ...]:
    """Return the features whose flags are in the catalogue."""
    return tuple(feature for feature in FEATURES if set(feature.flags) <= set(CATALOGUE.names()))


@cache
def settings_of(flag: str) -> tuple[dict[str, Any], ...]:
    """Return settings of small models with a flag: each of its choices, or one value of a parameter.

    The models are decoders, except for a flag that decoders refuse.

    Empty if no value is found.
    """
    if flag in BASE:
        return (settings(),)
    chosen = tuple(settings(choice) for choice in choices() if flag == next(iter(choice.flags)))
    if chosen:
        return chosen
    return next(((flags,) for flags in _tuned(flag) if not _refused(flags)), ())


def refusal(feature: Feature, flags: Mapping[str, Any], model: Any = None) -> str:
    """Return why a model with these flags does not support the feature; empty if it does.

    Args:
        model: of these flags, if it is built already.
    """
    try:
        if feature.call is None:
            check({**flags, **feature.flags})
        else:
            with torch.random.fork_rng(devices=()), torch.no_grad():
                feature.call(build(flags) if model is None else model)
    except FlagError as error:
        return " ".join(finding.message for finding in error.findings)
    except ValueError as error:
        return str(error)
    return ""


@cache
def refusals(flag: str) -> Mapping[str, tuple[str, ...]]:
    """Return, by the name of a feature, its refusal for each of the settings of a flag, on one model."""
    found: dict[str, tuple[str, ...]] = {feature.name: () for feature in features()}
    for flags in settings_of(flag):
        with torch.random.fork_rng(devices=()):
            model = build(flags)
        for feature in features():
            plain = feature.call is None and not feature.flags  # the model builds
            found[feature.name] += ("" if plain else refusal(feature, flags, model),)
    return found


def _tuned(flag: str) -> Iterator[dict[str, Any]]:
    """Yield settings to try, the simplest first."""
    for owner, param in CATALOGUE.params_named(flag):
        for value in _values(param):
            yield {**settings(), **_selecting(owner), **partners(owner, param), flag: value}


def _selecting(owner: Component) -> Mapping[str, Any]:
    """Return the flags of the first choice that selects this component."""
    if owner.select is None:
        return {}
    chosen = (choice.flags for choice in choices() if owner.select in choice.flags)
    return next((flags for flags in chosen if owner.is_selected_by(flags[owner.select])), {})


def _values(param: Param) -> list[Any]:
    """Return the example of the flag and small values of its type, other than its default."""
    found: list[Any] = [value for value in (param.flag.example, *param.flag.choices) if value is not None]
    for kind in kinds_of(param.type):
        found += SMALL.get(kind, ())
    return [value for value in found if value != param.default]


def _refused(flags: Mapping[str, Any]) -> bool:
    try:
        check(flags)
    except FlagError:
        return True
    return False


def _call(model: Any, **how: Any) -> None:
    dims = model.attn_layers.dims
    if model.attn_layers.has_cross and not model.num_memory_slots:
        how["context"] = torch.zeros(ROWS, 3, dims.dim_context or dims.dim)
    model(torch.zeros(ROWS, LENGTH, dtype=torch.long), **how)


FEATURES = (
    Feature(
        "cache",
        "decoding with a state, in blocks and token by token, equals one forward over the whole row",
        call=lambda model: _call(model, state=model.init_state(ROWS, LENGTH)),
    ),
    Feature(
        "generation",
        "64 greedy tokens after prompts of several lengths are the same with and without a decode state",
        call=AutoregressiveWrapper,
    ),
    Feature(
        "left padding",
        "the output of a row does not change with padding in front, with a cache too",
        call=lambda model: _call(model, seq_start_pos=torch.zeros(ROWS, dtype=torch.long)),
    ),
    Feature(
        "packing",
        "sequences packed in one row have the same output as in rows of their own",
        call=lambda model: _call(model, seq_lens=torch.full((ROWS, 2), LENGTH // 2)),
    ),
    Feature(
        "memories", "it can be combined with `max_mem_len`, and keeps every property", {"max_mem_len": 4}
    ),
    Feature("compile", "`torch.compile(fullgraph=True)` gives one graph with the same logits"),
    Feature("export", "`torch.export` gives one program for all input lengths, with the same logits"),
    Feature(
        "bf16", "logits and gradients are finite under bf16 autocast and with bf16 weights, in decoding too"
    ),
    Feature(
        "reversible", "it can be combined with `reversible`, and keeps every property", {"reversible": True}
    ),
)
