"""The power of the rule of verdicts, by simulation: the difference that a number of seeds finds.

Runs are drawn from a normal distribution with equal variances; one variant differs from the baseline. The
draws are seeded, so that one machine gives the same figures again.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import stdev

import numpy as np

from flagformer.lab.study.statistics import Estimate
from flagformer.lab.study.verdicts import LEVEL, differences, half_width

POWER = 0.8
MOST_SEEDS = 200
DRAWS, FEWEST_DRAWS, MOST_VALUES = 2000, 200, 400_000
LARGEST_CORRELATION = 0.95


@dataclass(frozen=True)
class Noise:
    """The noise of runs: `sigma` is the standard deviation of one run's loss over seeds, `correlation` that
    of two variants of one seed, pooled over variants; `freedom` the degrees of freedom of `sigma`."""

    sigma: float
    correlation: float = 0.0
    freedom: int = 0


def noise_of(losses: Sequence[Estimate], apart: Sequence[Estimate]) -> Noise | None:
    """The noise of a study from the losses of its variants and their differences from the baseline; None
    without two seeds of any variant, or if the losses do not vary."""
    single, pairs = _pooled(losses), _pooled(apart)
    if single is None or single == 0:
        return None
    correlation = 0.0 if pairs is None else 1 - (pairs / single) ** 2 / 2
    freedom = sum(one.n - 1 for one in losses if one.n > 1)
    return Noise(single, min(LARGEST_CORRELATION, max(0.0, correlation)), freedom)


def difference_found(
    noise: Noise, variants: int, seeds: int, power: float = POWER, level: float = LEVEL
) -> float | None:
    """The least difference that is resolved with probability `power`.

    Args:
        variants: how many variants are compared with the baseline.
        seeds: of every variant; below two there is no verdict, and the result is None.
        level: the error of the family.
    """
    if seeds < 2 or variants < 1:
        return None
    reach = _reach(variants, seeds, round(noise.correlation, 2), level)
    return noise.sigma * float(np.quantile(reach, power))


def seeds_needed(
    difference: float, noise: Noise, variants: int, power: float = POWER, level: float = LEVEL
) -> int | None:
    """The fewest seeds that resolve `difference` with probability `power`; None beyond 200."""
    if not difference or not math.isfinite(difference):
        return None
    counts = range(2, MOST_SEEDS + 1)

    def shortage(seeds: int) -> float:
        return -(difference_found(noise, variants, seeds, power, level) or 0.0)

    index = bisect_left(counts, -abs(difference), key=shortage)
    return counts[index] if index < len(counts) else None


@lru_cache(256)
def _reach(variants: int, seeds: int, correlation: float, level: float) -> np.ndarray:
    """For every simulated study the least difference that it would resolve, in standard deviations of a
    run. Intervals do not depend on the difference, so one set of draws serves all."""
    studies = max(FEWEST_DRAWS, min(DRAWS, MOST_VALUES // ((variants + 1) * seeds)))
    generator = np.random.default_rng((variants, seeds))
    own = generator.normal(size=(studies, variants + 1, seeds))
    shared = generator.normal(size=(studies, 1, seeds))
    runs = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    return np.asarray(differences(runs)[:, 0] + half_width(runs, level)[:, 0])


def _pooled(estimates: Sequence[Estimate]) -> float | None:
    """The standard deviation of single values around the mean of their estimate."""
    known = [one.values for one in estimates if one.n > 1 and all(map(math.isfinite, one.values))]
    if not known:
        return None
    squares = math.fsum(stdev(values) ** 2 * (len(values) - 1) for values in known)
    return math.sqrt(squares / sum(len(values) - 1 for values in known))
