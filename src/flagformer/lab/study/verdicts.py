"""The rule of verdicts: k variants against one baseline, each trained with the same n seeds.

One rule gives the interval and the verdict. It assumes that all runs of the family finished, that seeds are
independent, that two runs of one seed are independent or positively correlated, and that the variances of
single runs lie within a factor of about four of each other. Losses may be normal, skewed or heavy-tailed as
Student's t with 3 degrees of freedom. `benchmarks/statistics.py` measures its errors.

A difference is the mean over seeds of variant minus baseline. Its half width is the shorter of two, each with
a share of the level:

- by run: variances of single runs, moderated towards their mean, none below its own estimate;
  Satterthwaite's degrees of freedom and Dunnett's bound. Unequal correlations cannot harm it, as it takes no
  credit for pairs.
- by pair: variances of the differences of one seed, moderated in the same way, with Sidak's bound. It is
  short where the seed moves the variant and the baseline together.

Sources: Dunnett 1955 (doi:10.1080/01621459.1955.10501294), many against one control; Smyth 2004
(doi:10.2202/1544-6115.1027), moderated variances; Satterthwaite 1946 (doi:10.2307/3002019); Holm 1979 and
Romano and Wolf 2005 (doi:10.1198/016214504000000539), step-down; Schuirmann 1987
(doi:10.1007/BF01068419), two one-sided tests. The floors, the shares and the factors are
this rule's own; they were set by simulation.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flagformer.lab.study.critical import critical_value

LEVEL = 0.05
RUN_PRIOR, PAIR_PRIOR = 16, 8  # weight of the mean variance, in degrees of freedom
BASELINE_FLOOR = 1.25  # the least variance of the baseline, in units of its own estimate
TINY = 1e-300
Floats = NDArray[np.float64]
Passes = Callable[[Floats, Floats], NDArray[np.bool_]]


@dataclass(frozen=True)
class Verdicts:
    """Arrays [..., k], one value for each variant. Values are losses: a negative difference is better.

    Attributes:
        difference: mean over seeds of variant minus baseline.
        low, high: the interval for all k together. A variant that is resolved only after others were removed
            from the family has an interval that ends at zero.
        better, worse: the interval excludes zero.
        equivalent: the interval `inner_low` to `inner_high`, of twice the level for all k together, lies
            within the margin; None without a margin. A difference may be resolved and equivalent.
    """

    difference: Floats
    low: Floats
    high: Floats
    better: NDArray[np.bool_]
    worse: NDArray[np.bool_]
    equivalent: NDArray[np.bool_] | None = None
    inner_low: Floats | None = None
    inner_high: Floats | None = None


def judge(
    runs: ArrayLike, margin: float | None = None, level: float = LEVEL, family: int | None = None
) -> Verdicts:
    """Intervals and verdicts of the variants.

    Args:
        runs: losses [..., k + 1, n], the baseline first; at least one variant and two seeds.
        margin: the largest difference that counts as none; None: no test of equivalence.
        level: the error of the whole family.
        family: how many variants are compared, with those that are not in `runs`; default k.
    """
    runs = np.asarray(runs, float)
    family = family or runs.shape[-2] - 1
    apart, width = differences(runs), half_width(runs, level, family)
    resolved = _step_down(runs, level, family, lambda one, wide: np.abs(differences(one)) > wide)
    low, high = apart - width, apart + width
    better, worse = resolved & (apart < 0), resolved & (apart > 0)
    low, high = np.where(worse, np.maximum(low, 0), low), np.where(better, np.minimum(high, 0), high)
    if margin is None:
        return Verdicts(apart, low, high, better, worse)
    within = float(margin)
    equal = _step_down(runs, 2 * level, family, lambda one, wide: np.abs(differences(one)) + wide < within)
    wide = half_width(runs, 2 * level, family)
    inner_low = np.where(equal, np.maximum(apart - wide, -within), apart - wide)
    inner_high = np.where(equal, np.minimum(apart + wide, within), apart + wide)
    return Verdicts(apart, low, high, better, worse, equal, inner_low, inner_high)


def differences(runs: Floats) -> Floats:
    """Variant minus baseline, the mean over seeds: [..., k + 1, n] -> [..., k]."""
    return np.asarray(runs[..., 1:, :].mean(-1) - runs[..., :1, :].mean(-1))


def half_width(
    runs: Floats, level: float = LEVEL, family: int | None = None, left: int | None = None
) -> Floats:
    """Half the interval of every difference, [..., k], for `left` hypotheses together (default: the whole
    family) out of a family of `family` (default: k)."""
    family = family or runs.shape[-2] - 1
    left = left or family
    share, factor = _shares(family, runs.shape[-1], level)
    width = _width_by_run(runs, level * share, left)
    if share < 1:
        width = np.minimum(width, _width_by_pair(runs, level * (1 - share), left))
    return np.asarray(factor * width)


def _width_by_run(runs: Floats, level: float, tests: int) -> Floats:
    """From the spread of single runs, as if they were not paired."""
    rows, n = runs.shape[-2:]
    own = runs.var(-1, ddof=1)
    total = RUN_PRIOR + n - 1
    moderated = (RUN_PRIOR * own.mean(-1, keepdims=True) + (n - 1) * own) / total
    baseline = np.maximum(moderated[..., :1], BASELINE_FLOOR * own[..., :1])
    variant = np.maximum(moderated[..., 1:], own[..., 1:])
    freedom = total * (baseline + variant) ** 2 / np.maximum(baseline**2 + variant**2, TINY)
    bound = critical_value(tests, np.clip(freedom, 1, rows * (n - 1)), level, 0.5)
    return np.asarray(np.sqrt((baseline + variant) / n) * bound)


def _width_by_pair(runs: Floats, level: float, tests: int) -> Floats:
    """From the spread of the differences within a seed."""
    k, n = runs.shape[-2] - 1, runs.shape[-1]
    own = (runs[..., 1:, :] - runs[..., :1, :]).var(-1, ddof=1)
    moderated = (PAIR_PRIOR * own.mean(-1, keepdims=True) + (n - 1) * own) / (PAIR_PRIOR + n - 1)
    bound = critical_value(tests, min(PAIR_PRIOR + n - 1, k * (n - 1)), level, 0.0)
    return np.asarray(np.sqrt(np.maximum(moderated, own) / n) * bound)


def _shares(family: int, n: int, level: float) -> tuple[float, float]:
    """The part of the level for the width by run (the other part is for pairs), and the factor on both.

    The factor is above 1 where few seeds or a small level meet unequal variances, and below 1 where two
    dependent widths would spend too little. Levels above 5 % are those of equivalence, which is one-sided and
    more sensitive to skewness: no factor below 1.
    """
    deeper = max(1.0, LEVEL / level) ** 0.08
    least = 1.0 if level > LEVEL else 0.0
    if family == 1:
        return 0.5, max(least, 0.92 * deeper)
    if n <= 4 and level < LEVEL:  # so few degrees of freedom cannot guard a pair at a small level
        return 1.0, {2: 1.35, 3: 1.10, 4: 1.02}[n] * deeper
    share, factor = {2: (1.0, 1.35), 3: (0.75, 1.10), 4: (0.75, 1.00)}.get(n, (0.7, 0.945))
    return share, max(least, factor * deeper)


def _step_down(runs: Floats, level: float, family: int, passes: Passes) -> NDArray[np.bool_]:
    """Which hypotheses fall: those that pass with the bound for the family, then those that pass with the
    bound for the hypotheses that are left, and so on."""
    k = runs.shape[-2] - 1
    fallen = np.zeros((*runs.shape[:-2], k), bool)
    for count in range(k):
        here = fallen.sum(-1) == count
        if here.any():
            fallen[here] |= passes(runs[here], half_width(runs[here], level, family, family - count))
    return fallen
