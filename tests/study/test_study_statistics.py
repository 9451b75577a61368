"""Means, intervals, paired differences and Holm's correction against scipy and against hand-worked values."""

from __future__ import annotations

import pytest
from scipy import stats

from flagformer.study.statistics import holm, mean_interval, paired_differences

# scipy and this module order their sums differently: a few units in the last place
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


def test_only_seeds_that_both_have_count() -> None:
    values = {"base": {0: 1.0, 1: 2.0, 3: 9.0}, "other": {0: 1.5, 1: 2.7, 2: 100.0}}
    estimate = paired_differences(values, "base")["other"].estimate
    assert estimate.n == 2
    assert estimate.mean == pytest.approx(0.6)


@pytest.mark.parametrize(("lower_is_better", "verdict"), [(True, "worse"), (False, "better")])
def test_the_sign_that_is_better(lower_is_better: bool, verdict: str) -> None:
    values = {"base": {0: 0.5, 1: 0.6, 2: 0.7}, "other": {0: 0.7, 1: 0.801, 2: 0.899}}
    assert paired_differences(values, "base", lower_is_better)["other"].verdict == verdict


def test_one_seed_resolves_nothing() -> None:
    difference = paired_differences({"base": {0: 1.0}, "other": {0: 9.0}}, "base")["other"]
    assert (difference.p, difference.verdict) == (None, "not resolved")


def test_equal_values_are_no_difference() -> None:
    difference = paired_differences({"base": {0: 1.0, 1: 2.0}, "other": {0: 1.0, 1: 2.0}}, "base")["other"]
    assert (difference.p, difference.verdict) == (1.0, "not resolved")


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1, never falling
    corrected = holm({"d": 0.04, "a": 0.01, "c": 0.03, "b": 0.02})
    assert corrected == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.06})


def test_holm_makes_a_verdict_stricter() -> None:
    noisy = {0: 1.00, 1: 1.02, 2: 0.99}
    other = {0: 1.10, 1: 1.15, 2: 1.07}  # p = 0.018 alone
    assert paired_differences({"base": noisy, "one": other}, "base")["one"].verdict == "worse"
    more = {f"v{i}": {seed: value + 0.001 * i for seed, value in other.items()} for i in range(6)}
    assert {d.verdict for d in paired_differences({"base": noisy, **more}, "base").values()} == {
        "not resolved"
    }
