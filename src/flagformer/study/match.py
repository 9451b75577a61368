"""Making variants equal: in parameters, in arithmetic, in tokens; or saying why they cannot be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from flagformer.flags import FlagError
from flagformer.study.config_errors import ConfigError, StudyFileError
from flagformer.study.costs import Cost, cost
from flagformer.study.design import Study, flat, with_setting
from flagformer.study.formatting import count
from flagformer.study.source import Source

KNOBS = {"ff_mult": (1 / 64, 64.0), "dim": (8, 8192), "depth": (1, 256), "steps": (1, 10_000_000)}
USUAL = {"ff_mult": 4.0, "depth": 6}  # where neither the base nor the variant says it
TRIES = 40
CLOSE = 5e-4  # of what is wanted: nearer than anybody asks


@dataclass(frozen=True)
class Matched:
    """One variant that was made equal: `knob` went from `before` to `after`, and `amount` is what came
    out."""

    knob: str
    before: float
    after: float
    amount: int
    wanted: int


class _Apart(ValueError):
    """A variant that no setting of the knob makes equal."""


def match_budget(
    study: Study, source: Source, costs: dict[str, Cost]
) -> tuple[Study, dict[str, Cost], dict[str, Matched]]:
    """The study with every variant turned to the baseline's budget, what the variants cost now, and how they
    were turned.

    Raises:
        StudyFileError: every variant that has other tokens, or that the knob cannot make equal, at its line.
    """
    mistakes = _token_mistakes(study, source)
    costs, matched = dict(costs), {}
    if study.match.what in ("params", "flops") and not mistakes:
        for variant in list(study.compare)[1:]:
            try:
                turned = _turned(study, variant, costs)
            except _Apart as error:
                mistakes.append(source.mistake(("compare", variant), f"variant `{variant}` {error}"))
                continue
            if turned is not None:
                study, costs[variant], matched[variant] = turned
    if mistakes:
        raise StudyFileError(mistakes)
    return study, costs, matched


def amount(study: Study, variant: str, price: Cost) -> int:
    """What `match` compares: parameters, or FLOPs of a token or of the whole training."""
    if study.match.what == "params":
        return price.params
    if study.match.by == "steps":
        return price.flops_per_token * study.tokens_of(variant)
    return price.flops_per_token


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
    wanted, mistakes = study.tokens_of(study.baseline), []
    for variant in study.compare:
        has = study.tokens_of(variant)
        if has != wanted:
            text = (
                f"variant `{variant}` is trained on {has:,} tokens, {has / wanted:.3g} times the "
                f"{wanted:,} of "
                f"{study.baseline}, but `match: {match.what}` makes tokens equal; give both the same `steps` "
                "and `batch_size`, or write `match: none`"
            )
            mistakes.append(source.mistake(_tokens_route(source, variant), text))
    return mistakes


def _tokens_route(source: Source, variant: str) -> tuple[str, ...]:
    for key in ("steps", "batch_size"):
        route = ("compare", variant, "train", key)
        if route in source.lines or route in source.overrides:
            return route
    return ("compare", variant, "train")


def _turned(study: Study, variant: str, costs: dict[str, Cost]) -> tuple[Study, Cost, Matched] | None:
    """The study with the knob of one variant turned; None where it is equal as it is."""
    match, knob = study.match, study.match.by
    wanted = amount(study, study.baseline, costs[study.baseline])
    has = amount(study, variant, costs[variant])
    if _equal(has, wanted, match.within):
        return None
    key = "train.steps" if knob == "steps" else knob
    own = flat(study.compare[variant])
    unit = (
        "parameters"
        if match.what == "params"
        else "forward FLOPs" + (" in all" if knob == "steps" else " per token")
    )
    trouble = f"has {count(has)} {unit}, {study.baseline} has {count(wanted)}, and "
    if key in own or key in study.tune:
        raise _Apart(f"{trouble}`match.by: {knob}` cannot make them equal, because `{key}` is set for it")
    before = study.train.steps if knob == "steps" else {**USUAL, **study.base}.get(knob)
    if isinstance(before, bool) or not isinstance(before, int | float):
        raise _Apart(f"{trouble}`{knob}` is not one number in `base`, so it cannot be turned")

    def at(value: float) -> tuple[Study, Cost]:
        turned = with_setting(study.compare[variant], {key: value})
        changed = replace(study, compare={**study.compare, variant: turned})
        return changed, cost(changed.trial(variant, study.seeds[0], study.candidates[0]))

    after, (changed, price) = _search(at, lambda s, c: amount(s, variant, c), wanted, knob, trouble)
    reached = amount(changed, variant, price)
    if not _equal(reached, wanted, match.within):
        off = abs(reached / wanted - 1) * 100
        raise _Apart(
            f"{trouble}the nearest that `{knob}` reaches, {after:g}, is {off:.2g} % off, more than "
            f"`match.within` = {match.within:g}; match by another knob, or write `match: tokens`"
        )
    return changed, price, Matched(knob, before, after, reached, wanted)


def _search(
    at: Callable[[float], tuple[Study, Cost]],
    of: Callable[[Study, Cost], int],
    wanted: int,
    knob: str,
    trouble: str,
) -> tuple[float, tuple[Study, Cost]]:
    """The value of the knob whose amount is nearest to `wanted`, by halving; amounts grow with every knob."""
    whole = knob != "ff_mult"
    low, high = KNOBS[knob]
    best: tuple[float, float, tuple[Study, Cost]] | None = None
    for _ in range(TRIES):
        middle: float = int(low + high) // 2 if whole else round((low * high) ** 0.5, 4)
        try:
            found = at(middle)
        except (FlagError, ValueError) as error:
            raise _Apart(f"{trouble}`{knob}` = {middle:g} cannot be built: {error}") from None
        off = of(*found) - wanted
        if best is None or abs(off) < best[0]:
            best = (abs(off), middle, found)
        if abs(off) <= CLOSE * wanted or high - low <= (1 if whole else 1e-4):
            break
        low, high = (low, middle) if off > 0 else (middle, high)
    assert best is not None
    return best[1], best[2]


def _equal(has: int, wanted: int, within: float) -> bool:
    return abs(has - wanted) <= within * wanted


def as_plain(matched: dict[str, Matched]) -> dict[str, dict[str, Any]]:
    """For setting.json."""
    return {variant: asdict(one) for variant, one in matched.items()}
