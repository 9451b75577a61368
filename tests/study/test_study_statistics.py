"""Means, intervals, paired differences and Holm's correction against scipy and hand-computed values."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from flagformer.lab.study.statistics import (
    holm,
    mean_interval,
    paired_differences,
    seeds_needed,
    sign_flip,
    spread,
)

# scipy and this module sum in another order: a few units in the last digit
CLOSE = {"rel": 1e-12, "abs": 1e-14}
A = [2.41, 2.47, 2.39, 2.44]
B = [2.31, 2.42, 2.33, 2.30]


def test_interval_is_students() -> None:
    low, high = stats.t.interval(0.95, len(A) - 1, loc=sum(A) / 4, scale=stats.sem(A))
    estimate = mean_interval(A)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((sum(A) / 4, low, high), **CLOSE)


def test_interval_by_hand() -> None:
    # mean 2, standard deviation 1, t(0.975, 2) = 4.302653
    estimate = mean_interval([1.0, 2.0, 3.0])
    assert estimate.mean == 2.0
    assert estimate.half_width == pytest.approx(4.302653 / 3**0.5, abs=1e-6)  # the table has seven digits


def test_too_few_values_have_no_interval() -> None:
    assert mean_interval([]).mean is None
    assert (mean_interval([1.5]).mean, mean_interval([1.5]).low) == (1.5, None)


def test_differences_are_paired_by_seed() -> None:
    values = {"base": dict(enumerate(A)), "other": dict(enumerate(B))}
    difference = paired_differences(values, "base")["other"]
    expected = stats.ttest_rel(B, A)
    interval = expected.confidence_interval(0.95)
    assert difference.p == pytest.approx(expected.pvalue, **CLOSE)
    assert difference.estimate.low == pytest.approx(interval.low, **CLOSE)
    assert difference.estimate.high == pytest.approx(interval.high, **CLOSE)
    assert difference.verdict == "better"


def test_only_common_seeds_count() -> None:
    values = {"base": {0: 1.0, 1: 2.0, 3: 9.0}, "other": {0: 1.5, 1: 2.7, 2: 100.0}}
    estimate = paired_differences(values, "base")["other"].estimate
    assert estimate.n == 2
    assert estimate.mean == pytest.approx(0.6)


@pytest.mark.parametrize(("lower_is_better", "verdict"), [(True, "worse"), (False, "better")])
def test_the_sign_that_is_better(lower_is_better: bool, verdict: str) -> None:
    values = {"base": {0: 0.5, 1: 0.6, 2: 0.7}, "other": {0: 0.7, 1: 0.801, 2: 0.899}}
    assert paired_differences(values, "base", lower_is_better)["other"].verdict == verdict


def test_one_seed_is_inconclusive() -> None:
    difference = paired_differences({"base": {0: 1.0}, "other": {0: 9.0}}, "base")["other"]
    assert (difference.p, difference.verdict) == (None, "not resolved")


def test_equal_values_are_no_difference() -> None:
    difference = paired_differences({"base": {0: 1.0, 1: 2.0}, "other": {0: 1.0, 1: 2.0}}, "base")["other"]
    assert (difference.p, difference.verdict) == (1.0, "not resolved")


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, monotone
    corrected = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})


def test_holm_makes_a_verdict_stricter() -> None:
    noisy = {0: 1.00, 1: 1.02, 2: 0.99}
    other = {0: 1.10, 1: 1.15, 2: 1.07}  # p = 0.018 uncorrected
    assert paired_differences({"base": noisy, "one": other}, "base")["one"].verdict == "worse"
    more = {f"v{i}": {seed: value + 0.001 * i for seed, value in other.items()} for i in range(6)}
    assert {d.verdict for d in paired_differences({"base": noisy, **more}, "base").values()} == {
        "not resolved"
    }


def test_signs_by_hand() -> None:
    # of the 8 sign patterns of 1, 2, 3 only + + + and - - - reach 6
    assert sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    # of 1, 2, -3 (sum 0) every pattern does
    assert sign_flip([1.0, 2.0, -3.0]) == 1.0
    assert sign_flip([1.0]) is None


def test_signs_against_scipy() -> None:
    values = [0.3, -0.1, 0.7, 0.2, 0.5, -0.05, 0.4]
    exact = stats.permutation_test(
        (np.array(values),), lambda x, axis: x.sum(axis), permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(values) == pytest.approx(exact.pvalue, **CLOSE)


def test_sampled_signs_are_close_to_the_exact_value() -> None:
    values = list(np.random.default_rng(1).normal(0.3, 1.0, 17))
    exact = stats.ttest_1samp(values, 0.0).pvalue
    # the standard error of a fraction of 20,000 samples is below 0.004; t and signs agree to 0.02 for normal
    # values
    assert sign_flip(values) == pytest.approx(exact, abs=0.03)


def test_disagreeing_seeds_are_inconclusive() -> None:
    base = dict.fromkeys(range(5), 0.0)
    other = {0: 1.0, 1: 1.1, 2: 0.9, 3: 1.0, 4: -0.01}  # t uncorrected has p < 0.05
    difference = paired_differences({"base": base, "other": other}, "base")["other"]
    assert difference.p < 0.05
    assert (difference.p_signs, difference.verdict) == (4 / 32, "not resolved")


def test_a_difference_within_the_margin_is_equivalent() -> None:
    values = {"base": {0: 1.0, 1: 2.0, 2: 3.0}, "other": {0: 1.001, 1: 2.0012, 2: 3.0011}}
    assert paired_differences(values, "base")["other"].verdict == "worse"
    assert paired_differences(values, "base", margin=0.01)["other"].verdict == "equivalent"
    assert paired_differences(values, "base", margin=0.001)["other"].verdict == "worse"


def test_seeds_needed_has_the_stated_power() -> None:
    # Student's sample size for a difference of one standard deviation, power 0.8: 10 in the tables
    assert seeds_needed(1.0, 1.0) == 10
    assert seeds_needed(0.5, 1.0) == 34
    generator = np.random.default_rng(0)
    runs = generator.normal(0.01, 0.004, (4000, seeds_needed(0.01, 0.004)))
    share = (stats.ttest_1samp(runs, 0.0, axis=1).pvalue < 0.05).mean()
    assert share > 0.8 - 4 * (0.2 * 0.8 / 4000) ** 0.5  # four standard errors of the fraction
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-6, 1.0) is None


def test_spread_is_pooled() -> None:
    assert spread([mean_interval([1.0, 2.0, 3.0]), mean_interval([5.0, 5.0, 5.0])]) == pytest.approx(0.5**0.5)
    assert spread([mean_interval([1.0])]) is None


@pytest.mark.parametrize("seeds", [3, 5, 10])
@pytest.mark.parametrize("variants", [1, 6])
def test_a_copy_of_the_baseline_is_rarely_resolved(seeds: int, variants: int) -> None:
    """Only chance differs: at most one study in twenty finds a difference, for any number of
    variants."""
    generator, studies = np.random.default_rng(seeds), 600
    found = 0
    for _ in range(studies):
        drawn = generator.normal(2.0, 0.01, (1 + variants, seeds))
        values = {str(name): dict(enumerate(map(float, row))) for name, row in enumerate(drawn)}
        verdicts = {difference.verdict for difference in paired_differences(values, "0").values()}
        found += verdicts != {"not resolved"}
    assert (
        found / studies <= 0.05 + 3 * (0.05 * 0.95 / studies) ** 0.5
    )  # three standard errors of the fraction
