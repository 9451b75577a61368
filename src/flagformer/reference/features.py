"""What a flag is used together with: caches, padding, packing, tracing, low precision; and the refusals."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from flagformer.flags import CATALOGUE, Component, FlagError, Param
from flagformer.reference.selectors import BASE, choices, kinds_of, settings
from flagformer.wrappers.autoregressive import AutoregressiveWrapper
from flagformer.wrappers.build import build, check

ROWS, LENGTH = 2, 8
SMALL: Mapping[type, tuple[Any, ...]] = {bool: (True, False), int: (6, 3, 2, 256, 1), float: (0.25, 2.0)}

# What a flag that tunes may need beside what it tunes.
BESIDE: tuple[dict[str, Any], ...] = (
    {},
    {"cross_attend": True},
    {"cross_attend": True, "memory_update": "bmn"},
)


@dataclass(frozen=True)
class Feature:
    """A column of `docs/flags.md`.

    Attributes:
        name: its head.
        holds: what the tests ask of every setting that does not refuse it.
        flags: what turns it on; none: it is a way to call any model.
        call: uses it on a model, which refuses it by an error.
    """

    name: str
    holds: str
    flags: Mapping[str, Any] = field(default_factory=dict)
    call: Callable[[Any], object] | None = None


def features() -> tuple[Feature, ...]:
    """Those whose flags the catalogue has."""
    return tuple(feature for feature in FEATURES if set(feature.flags) <= set(CATALOGUE.names()))


def settings_of(flag: str) -> tuple[dict[str, Any], ...]:
    """Flags of small decoders: each choice that a flag offers, or another value of a flag that tunes.

    Nothing where no rule finds a value.
    """
    if flag in BASE:
        return (settings(),)
    chosen = tuple(settings(choice) for choice in choices() if flag == next(iter(choice.flags)))
    if chosen:
        return chosen
    return next(((flags,) for flags in _tuned(flag) if not _refused(flags)), ())


def refusal(feature: Feature, flags: Mapping[str, Any]) -> str:
    """Why a model of these flags cannot be used with the feature; empty where it can."""
    try:
        if feature.call is None:
            check({**flags, **feature.flags})
        else:
            with torch.random.fork_rng(devices=()), torch.no_grad():
                feature.call(build({**flags, **feature.flags}))
    except FlagError as error:
        return " ".join(finding.message for finding in error.findings)
    except ValueError as error:
        return str(error)
    return ""


def _tuned(flag: str) -> Iterator[dict[str, Any]]:
    """Settings to try, the simplest first."""
    for owner, param in CATALOGUE.params_named(flag):
        for more in BESIDE:
            for value in _values(param):
                yield {**settings(), **_selecting(owner), **more, flag: value}


def _selecting(owner: Component) -> Mapping[str, Any]:
    """Flags of the first choice that takes this component."""
    if owner.select is None:
        return {}
    chosen = (choice.flags for choice in choices() if owner.select in choice.flags)
    return next((flags for flags in chosen if owner.is_selected_by(flags[owner.select])), {})


def _values(param: Param) -> list[Any]:
    """Small values of the flag's type, without the one that is taken when nothing is said."""
    found: list[Any] = [value for value in param.flag.choices if value is not None]
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
        "blocks and single tokens behind a decode state give what the whole row gives",
        call=lambda model: _call(model, state=model.init_state(ROWS, LENGTH)),
    ),
    Feature(
        "generation",
        "64 greedy tokens behind prompts of several lengths are the same with and without a decode state",
        call=AutoregressiveWrapper,
    ),
    Feature(
        "left padding",
        "a row gives the same with padding in front, cached too",
        call=lambda model: _call(model, seq_start_pos=torch.zeros(ROWS, dtype=torch.long)),
    ),
    Feature(
        "packing",
        "sequences packed in one row give the same as alone",
        call=lambda model: _call(model, seq_lens=torch.full((ROWS, 2), LENGTH // 2)),
    ),
    Feature("memories", "it builds with `max_mem_len`, and has every property there", {"max_mem_len": 4}),
    Feature("compile", "`torch.compile` makes one graph, `fullgraph=True`, with the same logits"),
    Feature("export", "`torch.export` makes one program for any length of input, with the same logits"),
    Feature(
        "bf16", "under bf16 autocast and with bf16 weights logits and gradients are finite, decoding too"
    ),
    Feature("reversible", "it builds with `reversible`, and has every property there", {"reversible": True}),
)
