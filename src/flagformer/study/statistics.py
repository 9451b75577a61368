"""The arithmetic of a comparison: means and paired differences over seeds, with Student's t.

Seeds are few (three by default), so every interval is Student's, never a normal one, and the verdict on a
difference is Holm-corrected over the variants that are compared with the same baseline.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


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
    """`variant - baseline` over the seeds that both finished, and whether it is resolved."""

    estimate: Estimate
    p: float | None = None
    p_holm: float | None = None
    verdict: str = "not resolved"


def mean_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """Mean and two-sided t interval of independent values (one a seed)."""
    values = tuple(float(value) for value in values)
    n = len(values)
    if n == 0:
        return Estimate(0, None)
    mean = math.fsum(values) / n
    if n == 1 or not all(map(math.isfinite, values)):
        return Estimate(n, mean, values=values)
    half = _t_quantile(confidence, n - 1) * _standard_error(values, mean)
    return Estimate(n, mean, mean - half, mean + half, values)


def paired_differences(
    variants: Mapping[str, Mapping[int, float]], baseline: str, lower_is_better: bool = True
) -> dict[str, Difference]:
    """Differences from the baseline paired by seed, for every other variant.

    Args:
        variants: name -> seed -> value. A seed counts where both the variant and the baseline have it.
        baseline: the name that the others are compared with.
        lower_is_better: which sign is called "better".

    Returns:
        name -> Difference, without the baseline. The p-value is the paired t test's; the verdict is "better"
        or "worse" where the Holm-corrected p-value is below 0.05, else "not resolved".
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
    return {
        name: Difference(
            estimate,
            tests.get(name),
            corrected.get(name),
            _verdict(estimate, corrected.get(name), lower_is_better),
        )
        for name, estimate in estimates.items()
    }


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down correction: the p-values that may be compared with one level for the whole family."""
    corrected: dict[str, float] = {}
    highest = 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        highest = max(highest, min(1.0, p * (len(p_values) - rank)))
        corrected[name] = highest
    return corrected


def _verdict(estimate: Estimate, p: float | None, lower_is_better: bool) -> str:
    if p is None or estimate.mean is None or p >= 1 - CONFIDENCE:
        return "not resolved"
    return "better" if (estimate.mean < 0) == lower_is_better else "worse"


def _standard_error(values: Sequence[float], mean: float) -> float:
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1) / len(values))


def _t_quantile(confidence: float, freedom: int) -> float:
    from scipy.stats import t

    return float(t.ppf(0.5 + confidence / 2, freedom))


def _t_test(estimate: Estimate) -> float | None:
    """Two-sided p-value of the mean being zero; None where it is not defined."""
    if estimate.n < 2 or estimate.mean is None or estimate.low is None:
        return None
    error = _standard_error(estimate.values, estimate.mean)
    if error == 0:
        return 1.0 if estimate.mean == 0 else 0.0
    from scipy.stats import t

    return float(2 * t.sf(abs(estimate.mean / error), estimate.n - 1))
