"""Statistics of a comparison: means and paired differences over seeds, with Student's t.

There are few seeds (three by default), so intervals use Student's t, and verdicts are Holm-corrected over the
variants that are compared with the same baseline. As the t test assumes normal differences, an exact
sign-flip test must agree with it: with too few seeds for 5 %, all differences must have the same sign.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from operator import mul
from statistics import stdev

CONFIDENCE = 0.95
POWER = 0.8
MOST_FLIPPED = 16  # seeds of the exact test (2**16 sums); with more, signs are sampled
SAMPLED = 20_000
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with its t interval; `low` and `high` are None below two seeds."""

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
    """`variant - baseline` over the seeds that both finished, with its tests and verdict.

    Attributes:
        p: of the paired t test; `p_holm` corrected over the variants; `p_signs` of the sign-flip test, exact
            up to 16 seeds.
        verdict: "better", "worse", "equivalent", "not resolved", or "invalid" if an audit failed.
    """

    estimate: Estimate
    p: float | None = None
    p_holm: float | None = None
    p_signs: float | None = None
    verdict: str = "not resolved"


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and two-sided t interval of independent values, one per seed."""
    values = tuple(float(value) for value in values)
    n = len(values)
    if n == 0:
        return Estimate(0, None)
    mean = math.fsum(values) / n
    if n == 1 or not all(map(math.isfinite, values)):
        return Estimate(n, mean, values=values)
    half = _t_quantile(confidence, n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(n, mean, mean - half, mean + half, values)


def paired_differences(
    variants: Mapping[str, Mapping[int, float]],
    baseline: str,
    lower_is_better: bool = True,
    margin: float | None = None,
) -> dict[str, Difference]:
    """Differences from the baseline paired by seed, for every other variant.

    Args:
        variants: name -> seed -> value. A seed counts if both the variant and the baseline have it.
        baseline: the variant with which the others are compared.
        lower_is_better: whether a negative difference is "better".
        margin: a difference whose interval lies within ± margin is "equivalent", however small its p-value.

    Returns:
        name -> Difference, without the baseline. The verdict is "better" or "worse" where the Holm-corrected
        p-value of the paired t test is below 0.05 and that of the signs is below 0.05 or the least that so
        few seeds can give, else "not resolved".
    """
    base = variants.get(baseline, {})
    estimates: dict[str, Estimate] = {}
    tests: dict[str, float] = {}
    for name, values in variants.items():
        if name == baseline:
            continue
        seeds = [seed for seed in sorted(values) if seed in base]
        estimate = estimates[name] = mean_interval([values[seed] - base[seed] for seed in seeds])
        p = _t_test(estimate)
        if p is not None:
            tests[name] = p
    corrected = holm(tests)
    found = {}
    for name, estimate in estimates.items():
        p, p_signs = corrected.get(name), sign_flip(estimate.values)
        verdict = _verdict(estimate, p, p_signs, lower_is_better, margin)
        found[name] = Difference(estimate, tests.get(name), p, p_signs, verdict)
    return found


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the p-values that may be compared with one level for the whole family."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = highest
    return corrected


def sign_flip(values: Sequence[float]) -> float | None:
    """Two-sided p-value of the sign-flip test, in which both signs of a difference are equally
    likely: the fraction of all sign patterns whose sum is at least as far from zero. Beyond 16 values the
    patterns are sampled. None below two."""
    n = len(values)
    if n < 2 or not all(map(math.isfinite, values)):
        return None
    if n > MOST_FLIPPED:
        return _sampled_signs(values)
    least = abs(math.fsum(values)) * (1 - 1e-12)  # sums that are equal except for rounding count
    patterns = product((1.0, -1.0), repeat=n - 1)  # the other half mirrors these
    far = sum(abs(values[0] + math.fsum(map(mul, signs, values[1:]))) >= least for signs in patterns)
    return far / 2 ** (n - 1)


def seeds_needed(difference: float, sigma: float, power: float = POWER) -> int | None:
    """Seeds with which a paired t test at 5 % detects `difference` with probability `power`, if differences
    have the standard deviation `sigma`; None beyond ten thousand."""
    if not difference or not math.isfinite(sigma):
        return None
    counts = range(2, MOST_SEEDS + 1)
    index = bisect_left(counts, power, key=lambda n: _power(n, difference, sigma))
    return counts[index] if index < len(counts) else None


def spread(estimates: Sequence[Estimate]) -> float | None:
    """The standard deviation of single differences, pooled over variants; None where none has two seeds."""
    known = [e for e in estimates if e.n > 1 and e.mean is not None and e.low is not None]
    if not known:
        return None
    squares = math.fsum((value - (e.mean or 0.0)) ** 2 for e in known for value in e.values)
    return math.sqrt(squares / sum(e.n - 1 for e in known))


def _power(n: int, difference: float, sigma: float) -> float:
    if sigma == 0:
        return 1.0
    from scipy.stats import nct

    limit, shift = _t_quantile(CONFIDENCE, n - 1), abs(difference) / sigma * math.sqrt(n)
    beyond = float(nct.sf(limit, n - 1, shift))
    return beyond if math.isfinite(beyond) else 1.0  # scipy gives nan where the power is 1 to all digits


def _sampled_signs(values: Sequence[float]) -> float:
    import numpy as np

    signs = np.random.default_rng(0).choice((-1.0, 1.0), size=(SAMPLED, len(values)))
    far = int((abs(signs @ np.asarray(values)) >= abs(math.fsum(values)) * (1 - 1e-12)).sum())
    return (far + 1) / (SAMPLED + 1)


def _verdict(
    estimate: Estimate, p: float | None, p_signs: float | None, lower_is_better: bool, margin: float | None
) -> str:
    inside = estimate.low is not None and estimate.high is not None and margin is not None
    if inside and margin is not None and -margin < (estimate.low or 0.0) and (estimate.high or 0.0) < margin:
        return "equivalent"
    level = 1 - CONFIDENCE
    if p is None or p_signs is None or estimate.mean is None or p >= level:
        return "not resolved"
    if p_signs > max(level, 2.0 ** (1 - estimate.n)):
        return "not resolved"
    return "better" if (estimate.mean < 0) == lower_is_better else "worse"


def _t_quantile(confidence: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, freedom))


def _t_test(estimate: Estimate) -> float | None:
    """Two-sided p-value of the mean being zero; None where it is not defined."""
    if estimate.n < 2 or estimate.mean is None or estimate.low is None:
        return None
    error = stdev(estimate.values) / math.sqrt(estimate.n)
    if error == 0:
        return 1.0 if estimate.mean == 0 else 0.0
    from scipy.stats import t

    return float(2 * t.sf(abs(estimate.mean / error), estimate.n - 1))
