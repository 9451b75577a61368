"""Matches variants in parameters, FLOPs or tokens, or reports why they cannot be matched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from flagformer.flags import FlagError
from flagformer.lab.objectives import PAIRS
from flagformer.lab.study.config_errors import ConfigError, StudyFileError
from flagformer.lab.study.costs import Cost, cost
from flagformer.lab.study.design import Study, flat, with_setting
from flagformer.lab.study.formatting import count
from flagformer.lab.study.source import Source

KNOBS = {"ff_mult": (1 / 64, 64.0), "dim": (8, 8192), "depth": (1, 256), "steps": (1, 10_000_000)}
DEFAULTS = {"ff_mult": 4.0, "depth": 6}  # if neither the base nor the variant sets it
TRIES = 40
CLOSE = 5e-4  # relative difference at which the search stops
Found = tuple[int, Study, Cost]  # an amount, and the study and the cost of the variant that have it


@dataclass(frozen=True)
class Matched:
    """A matched variant: `knob` was changed from `before` to `after`, which gave `amount`."""

    knob: str
    before: float
    after: float
    amount: int
    wanted: int


class _Unmatched(ValueError):
    """A variant that no value of the knob matches."""


def match_budget(
    study: Study, source: Source, costs: dict[str, Cost]
) -> tuple[Study, dict[str, Cost], dict[str, Matched]]:
    """The study with every variant matched to the baseline of its cell, the new costs, and the changes.

    Raises:
        StudyFileError: for variants with another number of tokens, or that the knob cannot match, with their
            lines.
    """
    mistakes = _token_mistakes(study, source)
    costs, matched = dict(costs), {}
    if study.match.what in ("params", "flops") and not mistakes:
        for variant in study.compare:
            if variant == study.baseline_of(variant):
                continue
            try:
                changed = _matched(study, variant, costs)
            except _Unmatched as error:
                mistakes.append(source.mistake(("compare", variant), f"variant `{variant}` {error}"))
                continue
            if changed is not None:
                study, costs[variant], matched[variant] = changed
    if mistakes:
        raise StudyFileError(mistakes)
    return study, costs, matched


def amount(study: Study, variant: str, of: Cost) -> int:
    """The quantity that `match` compares: parameters, or FLOPs per token or of the whole training."""
    if study.match.what == "params":
        return of.params
    if study.match.by == "steps":
        return of.flops_per_token * study.tokens_of(variant)
    return of.flops_per_token


def _token_mistakes(study: Study, source: Source) -> list[ConfigError]:
    match = study.match
    if match.what == "params" and match.by == "steps":
        text = (
            "`match.by` cannot be steps, because steps do not change the parameters; use ff_mult, dim "
            "or depth"
        )
        return [source.mistake(("match", "by"), text)]
    if match.what == "none" or match.by == "steps":
        return []
    mistakes = []
    for variant in study.compare:
        baseline = study.baseline_of(variant)
        has, wanted = study.tokens_of(variant), study.tokens_of(baseline)
        if has != wanted:
            text = (
                f"variant `{variant}` is trained on {has:,} tokens, {has / wanted:.3g} times the "
                f"{wanted:,} of {baseline}, but `match: {match.what}` needs equal tokens; set the same "
                "`steps` and `batch_size` for both, or write `match: none`"
            )
            mistakes.append(source.mistake(_tokens_route(source, variant), text))
    return mistakes


def _tokens_route(source: Source, variant: str) -> tuple[str, ...]:
    for key in ("steps", "batch_size"):
        route = ("compare", variant, "train", key)
        if source.has(route):
            return route
    return ("compare", variant, "train")


def _matched(study: Study, variant: str, costs: dict[str, Cost]) -> tuple[Study, Cost, Matched] | None:
    """The study with the knob of one variant changed; None if it matches already."""
    match, knob = study.match, study.match.by
    baseline = study.baseline_of(variant)
    wanted = amount(study, baseline, costs[baseline])
    has = amount(study, variant, costs[variant])
    if _equal(has, wanted, match.within):
        return None
    flags = {"model": study.data.model, **study.variants[variant]}
    keys = ("train.steps",) if knob == "steps" else flags_of(knob, flags["model"])
    own = flat(study.compare[variant])
    unit = (
        "parameters"
        if match.what == "params"
        else "forward FLOPs" + (" in total" if knob == "steps" else " per token")
    )
    trouble = f"has {count(has)} {unit}, {baseline} has {count(wanted)}, and "
    for key in keys:
        if key in own or key in study.tune:
            text = f"`match.by: {knob}` cannot match them, because the variant sets `{key}`"
            raise _Unmatched(f"{trouble}{text}")
    before = study.train.steps if knob == "steps" else _before(study, knob, keys)
    if isinstance(before, bool) or not isinstance(before, int | float):
        names = " and ".join(f"`{key}`" for key in keys)
        verb = "is not a single number" if len(keys) == 1 else "are not one number"
        raise _Unmatched(f"{trouble}{names} {verb} in `base`, so it cannot be changed")

    def at(value: float) -> Found:
        own = with_setting(study.compare[variant], dict.fromkeys(keys, value))
        changed = replace(study, compare={**study.compare, variant: own})
        its_cost = cost(changed.trial(variant, study.seeds[0], study.candidates[0]))
        return amount(changed, variant, its_cost), changed, its_cost

    after, (reached, changed, its_cost) = _search(at, wanted, knob, trouble)
    if not _equal(reached, wanted, match.within):
        off = abs(reached / wanted - 1) * 100
        raise _Unmatched(
            f"{trouble}the best value of `{knob}`, {after:g}, differs by {off:.2g} %, more than "
            f"`match.within` = {match.within:g}; match by another knob, or write `match: tokens`"
        )
    return changed, its_cost, Matched(knob, before, after, reached, wanted)


def flags_of(knob: str, kind: str) -> tuple[str, ...]:
    """The flags that a knob changes in a kind of model; in both halves of an encoder-decoder."""
    halves = kind in PAIRS and knob != "dim"
    return (f"enc_{knob}", f"dec_{knob}") if halves else (knob,)


def _before(study: Study, knob: str, keys: tuple[str, ...]) -> Any:
    """The value of the flags of a knob in `base`; None where those of two halves differ."""
    first, *others = (study.base.get(key, DEFAULTS.get(knob)) for key in keys)
    return first if all(other == first for other in others) else None


def _search(at: Callable[[float], Found], wanted: int, knob: str, trouble: str) -> tuple[float, Found]:
    """Bisection for the value of the knob whose amount is nearest to `wanted`; amounts grow with the knob."""
    whole = knob != "ff_mult"
    low, high = KNOBS[knob]
    best: tuple[float, Found] | None = None
    for _ in range(TRIES):
        middle: float = int(low + high) // 2 if whole else round((low * high) ** 0.5, 4)
        try:
            found = at(middle)
        except (FlagError, ValueError) as error:
            raise _Unmatched(f"{trouble}`{knob}` = {middle:g} cannot be built: {error}") from None
        off = found[0] - wanted
        if best is None or abs(off) < abs(best[1][0] - wanted):
            best = (middle, found)
        if abs(off) <= CLOSE * wanted or high - low <= (1 if whole else 1e-4):
            break
        low, high = (low, middle) if off > 0 else (middle, high)
    assert best is not None
    return best


def _equal(has: int, wanted: int, within: float) -> bool:
    return abs(has - wanted) <= within * wanted


def as_plain(matched: dict[str, Matched]) -> dict[str, dict[str, Any]]:
    """The changes as JSON values, for setting.json."""
    return {variant: asdict(one) for variant, one in matched.items()}
