"""Means, intervals and verdicts against scipy, published tables, hand-computed values and simulations."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy import stats

from flagformer.lab.study.critical import critical_value
from flagformer.lab.study.formatting import difference as difference_text
from flagformer.lab.study.power import Noise, difference_found, noise_of, seeds_needed
from flagformer.lab.study.statistics import Difference, Estimate, mean_interval, paired_differences
from flagformer.lab.study.verdicts import half_width, judge

# scipy and this module sum in another order: a few units in the last digit
CLOSE = {"rel": 1e-12, "abs": 1e-14}
A = [2.41, 2.47, 2.39, 2.44]
B = [2.21, 2.32, 2.23, 2.20]


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


@pytest.mark.parametrize(
    ("tests", "freedom", "bound"),
    # two-sided 5 % of Dunnett 1964 (doi:10.2307/2528490), correlation 1/2
    [(2, 10, 2.57), (5, 10, 2.99), (2, 20, 2.38), (3, 20, 2.54), (9, 20, 2.95), (5, 1e9, 2.51)],
)
def test_bounds_are_those_of_dunnetts_table(tests: int, freedom: float, bound: float) -> None:
    assert critical_value(tests, freedom, 0.05, 0.5) == pytest.approx(bound, abs=0.006)  # two digits


@pytest.mark.parametrize(("freedom", "level"), list(product([1, 2.5, 7, 30], [0.05, 0.004])))
def test_bounds_of_one_are_students(freedom: float, level: float) -> None:
    for correlation in (0.0, 0.5):  # between computed degrees of freedom it interpolates
        assert critical_value(1, freedom, level, correlation) == pytest.approx(
            stats.t.ppf(1 - level / 2, freedom), rel=1.5e-3
        )


def test_uncorrelated_bounds_with_known_variance_are_sidaks() -> None:
    expected = stats.norm.ppf(1 - (1 - 0.95 ** (1 / 7)) / 2)
    assert critical_value(7, 1e5, 0.05, 0.0) == pytest.approx(expected, rel=1e-4)  # 1e5 degrees of freedom


def test_the_width_of_one_variant_by_hand() -> None:
    """Two rows of three seeds: each width in scalars, with bounds of Student's t."""
    runs = np.array([[1.0, 1.2, 1.1], [1.5, 1.4, 1.9]])
    base, other = 0.01, 0.07  # variances of single runs
    mean, total = (base + other) / 2, 16 + 2
    base_used = max((16 * mean + 2 * base) / total, 1.25 * base)
    other_used = max((16 * mean + 2 * other) / total, other)
    freedom = total * (base_used + other_used) ** 2 / (base_used**2 + other_used**2)
    by_run = ((base_used + other_used) / 3) ** 0.5 * stats.t.ppf(1 - 0.0125, min(freedom, 4))
    pair = np.var([0.5, 0.2, 0.8], ddof=1)  # one variance is its own mean
    by_pair = (pair / 3) ** 0.5 * stats.t.ppf(1 - 0.0125, 2)
    assert half_width(runs) == pytest.approx([0.92 * min(by_run, by_pair)], rel=1e-6)


def test_differences_are_paired_by_seed() -> None:
    values = {"base": dict(enumerate(A)), "other": dict(enumerate(B))}
    found = paired_differences(values, "base")["other"]
    width = half_width(np.array([A, B]))[0]
    assert found.estimate.mean == pytest.approx(np.mean(B) - np.mean(A), **CLOSE)
    assert found.estimate.values == pytest.approx(np.subtract(B, A), **CLOSE)
    assert found.estimate.half_width == pytest.approx(width, **CLOSE)
    assert found.verdict == "better"


def test_only_common_seeds_count() -> None:
    values = {"base": {0: 1.0, 1: 2.0, 3: 9.0}, "other": {0: 1.5, 1: 2.7, 2: 100.0}}
    estimate = paired_differences(values, "base")["other"].estimate
    assert estimate.n == 2
    assert estimate.mean == pytest.approx(0.6)


def test_a_variant_with_fewer_seeds_stays_in_the_family() -> None:
    whole = {"base": dict(enumerate(A)), "b": dict(enumerate(B)), "c": {0: 2.4, 1: 2.5, 2: 2.3}}
    found = paired_differences(whole, "base")
    assert (found["b"].estimate.n, found["c"].estimate.n) == (4, 3)
    assert found["b"].estimate.half_width == pytest.approx(half_width(np.array([A, B]), family=2)[0], **CLOSE)


@pytest.mark.parametrize(("lower_is_better", "verdict"), [(True, "worse"), (False, "better")])
def test_the_sign_that_is_better(lower_is_better: bool, verdict: str) -> None:
    values = {"base": {0: 0.5, 1: 0.6, 2: 0.7}, "other": {0: 0.7, 1: 0.801, 2: 0.899}}
    assert paired_differences(values, "base", lower_is_better)["other"].verdict == verdict


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_give_no_verdict(bad: float) -> None:
    found = paired_differences({"base": {0: 1.0, 1: 1.1}, "other": {0: 2.0, 1: bad}}, "base")["other"]
    assert (found.estimate.low, found.verdict) == (None, "not resolved")


def test_one_seed_is_inconclusive() -> None:
    found = paired_differences({"base": {0: 1.0}, "other": {0: 9.0}}, "base")["other"]
    assert (found.estimate.low, found.verdict) == (None, "not resolved")


def test_equal_values_are_no_difference() -> None:
    same = {0: 1.0, 1: 1.0}
    found = paired_differences({"base": same, "other": same}, "base", margin=0.1)["other"]
    assert (found.estimate.half_width, found.verdict) == (0.0, "equivalent")
    assert paired_differences({"base": same, "other": same}, "base")["other"].verdict == "not resolved"


def test_more_variants_make_a_verdict_stricter() -> None:
    noisy = {0: 1.00, 1: 1.02, 2: 0.99}
    other = {0: 1.062, 1: 1.058, 2: 1.049}
    assert paired_differences({"base": noisy, "one": other}, "base")["one"].verdict == "worse"
    waiting: dict[str, dict[int, float]] = {f"v{i}": {} for i in range(12)}  # planned, not finished
    found = paired_differences({"base": noisy, "one": other, **waiting}, "base")
    assert {one.verdict for one in found.values()} == {"not resolved"}


def test_step_down_ends_the_interval_at_zero() -> None:
    """The third variant falls only after the two large ones have left the family."""
    runs = np.array([[0.0, 1.0, 2.0], [19.0, 18.0, 21.0], [19.5, 20.0, 18.5], [0.9, -0.1, 2.2]])
    wide, narrow = half_width(runs)[2], half_width(runs, family=3, left=1)[2]
    assert narrow < wide
    runs[3] += (narrow + wide) / 2
    found = judge(runs)
    assert list(found.worse) == [True, True, True]
    assert (found.low[0] > 0, found.low[2]) == (True, 0.0)
    text = difference_text(Difference(Estimate(3, 2.55, 0.0, 5.5), "worse"))
    assert text == "+2.550 [0.000, 5.500]"
    assert difference_text(Difference(Estimate(3, -0.25, -0.5, 0.0))) == "\N{MINUS SIGN}0.250 ± 0.250"


def test_a_difference_within_the_margin_is_equivalent() -> None:
    values = {"base": {0: 1.0, 1: 2.0, 2: 3.0}, "other": {0: 1.001, 1: 2.0012, 2: 3.0011}}
    assert paired_differences(values, "base")["other"].verdict == "worse"
    found = paired_differences(values, "base", margin=0.01)["other"]
    assert found.verdict == "equivalent"
    assert 0 < found.equivalence[0] < found.equivalence[1] < 0.01
    assert found.estimate.low < found.equivalence[0]
    assert paired_differences(values, "base", margin=0.001)["other"].verdict == "worse"


def test_the_noise_of_a_study() -> None:
    losses = [mean_interval([1.0, 2.0, 3.0]), mean_interval([1.5, 2.5, 3.5])]
    assert noise_of(losses, [mean_interval([0.5, 0.5, 0.5])]) == Noise(1.0, 0.95, 4)  # at most 0.95
    assert noise_of(losses, [mean_interval([-1.0, 0.0, 1.0])]) == Noise(pytest.approx(1.0), 0.5, 4)
    assert noise_of([mean_interval([1.0])], []) is None


def test_the_difference_found_has_the_stated_power() -> None:
    noise = Noise(0.01, 0.3)
    found = difference_found(noise, 4, 3, 0.9)
    generator = np.random.default_rng(1)
    runs = 0.01 * (
        0.3**0.5 * generator.normal(size=(2000, 1, 3)) + 0.7**0.5 * generator.normal(size=(2000, 5, 3))
    )
    runs[:, 1] += found
    # two simulations of 2000 studies: four standard errors of their difference
    assert judge(runs).worse[:, 0].mean() == pytest.approx(0.9, abs=4 * (2 * 0.9 * 0.1 / 2000) ** 0.5)


def test_seeds_needed() -> None:
    noise = Noise(1.0)
    needed = seeds_needed(1.5, noise, 4)
    assert difference_found(noise, 4, needed) <= 1.5 < difference_found(noise, 4, needed - 1)
    assert seeds_needed(0.0, noise, 4) is None
    assert seeds_needed(1e-3, noise, 4) is None
    assert difference_found(noise, 4, 1) is None


STUDIES = 2000
ERROR = (0.05 * 0.95 / STUDIES) ** 0.5  # standard error of a fraction near the level


def drawn(noise: str, variants: int, seeds: int, correlation: float, ratio: float = 1.0) -> np.ndarray:
    """Studies without any effect: losses [STUDIES, variants + 1, seeds], the baseline's variance `ratio`."""
    generator = np.random.default_rng((variants, seeds))
    shape = (STUDIES, variants + 1, seeds)

    def values(shape: tuple[int, ...]) -> np.ndarray:
        if noise == "skewed":
            return generator.gamma(2.0, size=shape) / 2**0.5
        if noise == "heavy":
            return generator.standard_t(3, size=shape) / 3**0.5
        bad = generator.random(shape) < (0.1 if noise == "rare bad seeds" else 0.0)
        return generator.normal(size=shape) + 5 * bad

    runs = correlation**0.5 * values((STUDIES, 1, seeds)) + (1 - correlation) ** 0.5 * values(shape)
    runs[:, 0] *= ratio**0.5  # normal noise only, whose mean is zero
    return runs


@pytest.mark.parametrize(
    ("noise", "variants", "seeds", "correlation", "ratio"),
    [
        ("normal", 1, 3, 0.0, 1.0), ("normal", 10, 2, 0.5, 1.0), ("normal", 10, 3, 0.0, 4.0),
        ("skewed", 3, 5, 0.0, 1.0),
        ("heavy", 5, 4, 0.2, 1.0), ("normal", 6, 10, 0.8, 0.25), ("rare bad seeds", 2, 6, 0.0, 1.0),
    ],
)  # fmt: skip
def test_the_error_of_a_family_is_the_level(
    noise: str, variants: int, seeds: int, correlation: float, ratio: float
) -> None:
    """Only chance differs: at most one family in twenty has a verdict, and 95 % are covered together."""
    runs = drawn(noise, variants, seeds, correlation, ratio)
    found = judge(runs, margin=3.0)
    bound = 0.07 if noise == "rare bad seeds" else 0.055
    assert (found.better | found.worse).any(-1).mean() < bound + 3 * ERROR
    shifted = judge(runs + 3.0 * np.eye(variants + 1)[1][:, None], margin=3.0)  # one variant at the margin
    assert shifted.equivalent[:, 0].mean() < bound + 3 * ERROR
    covered = ((shifted.low <= np.eye(variants)[0] * 3.0) & (np.eye(variants)[0] * 3.0 <= shifted.high)).all(
        -1
    )
    assert covered.mean() > 0.94 - 3 * ERROR


@pytest.mark.parametrize(("effect", "seeds", "least"), [(4.0, 3, 0.75), (2.0, 5, 0.5)])
def test_the_power_with_ten_variants(effect: float, seeds: int, least: float) -> None:
    runs = drawn("normal", 10, seeds, 0.0)
    runs[:, 1] -= effect
    assert judge(runs).better[:, 0].mean() > least - 3 * (0.25 / STUDIES) ** 0.5
