"""Statistics of a comparison: means with Student's t, and verdicts on differences paired by seed.

The verdicts and their intervals are those of `verdicts.py`, for all variants of a family together.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import stdev

from flagformer.lab.study.verdicts import LEVEL, Verdicts, judge


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its 95 % interval; `low` and `high` are None below two seeds."""

    n: int
    mean: float | None
    low: float | None = None
    high: float | None = None
    values: tuple[float, ...] = ()

    @property
    def half_width(self) -> float | None:
        """Half the interval, for `mean ± half_width`."""
        if self.low is None or self.high is None:
            return None
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Difference:
    """`variant - baseline` over the seeds that both finished.

    Attributes:
        estimate: the interval holds for all variants of the family together.
        verdict: "better", "worse", "equivalent", "not resolved"; "unstable" if a seed diverged, and "invalid"
            if an audit failed.
        equivalence: the interval that decides "equivalent", of 90 % for the family; None without a margin.
    """

    estimate: Estimate
    verdict: str = "not resolved"
    equivalence: tuple[float, float] | None = None


def mean_interval(values: Sequence[float]) -> Estimate:
    """Mean and two-sided 95 % t interval of independent values, one per seed."""
    values = tuple(float(value) for value in values)
    n = len(values)
    if n == 0:
        return Estimate(0, None)
    mean = math.fsum(values) / n
    if n == 1 or not all(map(math.isfinite, values)):
        return Estimate(n, mean, values=values)
    from scipy.special import stdtrit

    half = float(stdtrit(n - 1, 1 - LEVEL / 2)) * stdev(values) / math.sqrt(n)
    return Estimate(n, mean, mean - half, mean + half, values)


def paired_differences(
    variants: Mapping[str, Mapping[int, float]],
    baseline: str,
    lower_is_better: bool = True,
    margin: float | None = None,
    level: float = LEVEL,
) -> dict[str, Difference]:
    """Differences from the baseline paired by seed, for every other variant.

    Args:
        variants: name -> seed -> value. A seed counts if both the variant and the baseline have it; variances
            are pooled over the variants with the same seeds.
        baseline: the variant with which the others are compared.
        lower_is_better: whether a negative difference is "better".
        margin: a difference whose 90 % interval lies within ± margin is "equivalent", even if it is resolved.
        level: the error of the family; intervals hold with probability 1 - level for all variants together.

    Returns:
        name -> Difference, without the baseline. Below two common seeds a difference has no interval.
    """
    base = variants.get(baseline, {})
    found: dict[str, Difference] = {}
    groups: dict[tuple[int, ...], list[str]] = {}
    for name, values in variants.items():
        if name == baseline:
            continue
        seeds = tuple(seed for seed in sorted(values) if seed in base)
        apart = tuple(float(values[seed] - base[seed]) for seed in seeds)
        found[name] = Difference(Estimate(len(apart), _mean(apart), values=apart))
        if len(seeds) > 1 and all(map(math.isfinite, apart)):
            groups.setdefault(seeds, []).append(name)
    for seeds, names in groups.items():
        runs = [[float(variants[name][seed]) for seed in seeds] for name in (baseline, *names)]
        judged = judge(runs, margin, level, family=len(found))
        for index, name in enumerate(names):
            found[name] = _difference(found[name].estimate, judged, index, lower_is_better)
    return found


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None


def _difference(estimate: Estimate, judged: Verdicts, index: int, lower_is_better: bool) -> Difference:
    """One variant of the family."""
    low, high = float(judged.low[index]), float(judged.high[index])
    verdict = "not resolved"
    if judged.better[index] or judged.worse[index]:
        verdict = "better" if bool(judged.better[index]) == lower_is_better else "worse"
    equivalence = None
    if judged.equivalent is not None and judged.inner_low is not None and judged.inner_high is not None:
        equivalence = float(judged.inner_low[index]), float(judged.inner_high[index])
        verdict = "equivalent" if judged.equivalent[index] else verdict
    return Difference(Estimate(estimate.n, estimate.mean, low, high, estimate.values), verdict, equivalence)
