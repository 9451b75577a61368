"""Filters against their definitions, written as loops over one row in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flagformer.generation import FILTERS, bind_filter, find_filter, min_p, top_a, top_k, top_p

# Distinct multiples of 1/8: no ties at the border and no probability within float32 rounding of a threshold
# unless a test needs it.
rows = st.lists(st.integers(-64, 64), min_size=1, max_size=24, unique=True).map(
    lambda row: [value / 8 for value in row]
)
fast = settings(max_examples=60, deadline=None)


def kept(logits: torch.Tensor) -> set[int]:
    return set(logits.isfinite().nonzero()[:, 0].tolist())


def probabilities(row: list[float]) -> list[float]:
    return torch.tensor(row, dtype=torch.float64).softmax(-1).tolist()


def by_likelihood(row: list[float]) -> list[int]:
    return sorted(range(len(row)), key=lambda index: -row[index])


@fast
@given(rows, st.integers(1, 30))
def test_top_k_keeps_the_k_largest(row, k):
    assert kept(top_k(torch.tensor(row), k=k)) == set(by_likelihood(row)[:k])


@fast
@given(rows, st.floats(0.01, 1.0))
def test_top_k_by_fraction_rounds_up_and_keeps_at_least_one(row, fraction):
    assert len(kept(top_k(torch.tensor(row), frac_num_tokens=fraction))) == math.ceil(fraction * len(row))


@fast
@given(rows, st.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_with_the_mass(row, thres):
    probs, order = probabilities(row), by_likelihood(row)
    masses = [sum(probs[index] for index in order[:count]) for count in range(1, len(row) + 1)]
    if min(abs(mass - thres) for mass in masses) < 1e-6:  # float32 may round to either side
        return
    smallest = next(count for count, mass in enumerate(masses, start=1) if mass >= thres or count == len(row))
    assert kept(top_p(torch.tensor(row), thres=thres)) == set(order[:smallest])


@fast
@given(rows, st.floats(0.0, 1.0))
def test_min_p_keeps_tokens_by_their_ratio_to_the_best(row, ratio):
    probs = probabilities(row)
    sure = {i for i, p in enumerate(probs) if p >= ratio * max(probs) * (1 + 1e-5)}
    possible = {i for i, p in enumerate(probs) if p >= ratio * max(probs) * (1 - 1e-5)}
    assert sure <= kept(min_p(torch.tensor(row), min_p=ratio)) <= possible


@fast
@given(rows, st.floats(1.0, 4.0), st.floats(0.0, 1.0))
def test_top_a_keeps_tokens_above_the_powered_limit(row, power, ratio):
    probs = probabilities(row)
    limit = ratio * max(probs) ** power
    sure = {i for i, p in enumerate(probs) if p >= limit * (1 + 1e-5)}
    possible = {i for i, p in enumerate(probs) if p >= limit * (1 - 1e-5)}
    assert sure <= kept(top_a(torch.tensor(row), min_p_pow=power, min_p_ratio=ratio)) <= possible


@pytest.mark.parametrize("name", FILTERS)
@fast
@given(rows)
def test_logits_in_the_filter_are_unchanged_and_the_best_is_kept(name, row):
    logits = torch.tensor([row, row[::-1]])
    before = logits.clone()
    filtered = FILTERS[name](logits)
    assert torch.equal(logits, before)  # no mutation
    assert filtered.shape == logits.shape
    assert torch.equal(filtered, torch.where(filtered.isfinite(), logits, -math.inf))
    assert filtered.amax(-1).equal(logits.amax(-1))


@pytest.mark.parametrize("name", FILTERS)
def test_rows_are_filtered_independently(name):
    logits = torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0)) * 3
    together = FILTERS[name](logits)
    for batch in range(2):
        for place in range(3):
            assert torch.equal(together[batch, place], FILTERS[name](logits[batch, place]))


def test_the_published_top_p_mistake_is_avoided():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert kept(top_p(logits, thres=0.9)) == {0, 1, 2}
    assert kept(top_p(logits, thres=0.1)) == {0}
    assert kept(top_p(logits, thres=1.0)) == {0, 1, 2, 3}


@pytest.mark.parametrize("name", FILTERS)
def test_equal_logits_and_a_vocabulary_of_one(name):
    assert FILTERS[name](torch.zeros(1, 1)).isfinite().all()
    assert FILTERS[name](torch.zeros(7)).isfinite().any()


def test_top_k_keeps_exactly_k_among_ties():
    assert len(kept(top_k(torch.zeros(9), k=4))) == 4


def test_filters_compose_over_dropped_tokens():
    logits = torch.tensor([4.0, 3.0, 2.0, 1.0])
    assert kept(top_p(top_k(logits, k=2), thres=0.99)) == {0, 1}
    assert kept(min_p(top_k(logits, k=2), min_p=0.0)) == {0, 1}


def test_bfloat16_logits_stay_bfloat16():
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1)).bfloat16()
    for function in FILTERS.values():
        assert function(logits).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("function", "settings_", "says"),
    [
        (top_k, {"k": 0}, "`k` must be a whole number of at least 1, but is 0"),
        (top_k, {"k": 2.5}, "`k` must be a whole number of at least 1, but is 2.5"),
        (top_k, {"k": True}, "`k` must be"),
        (top_k, {"frac_num_tokens": 0}, "`frac_num_tokens` must be a number above 0"),
        (top_p, {"thres": 0.0}, "`thres` must be a number above 0 and at most 1, but is 0.0"),
        (top_p, {"thres": 1.5}, "but is 1.5"),
        (top_p, {"thres": math.nan}, "but is nan"),
        (min_p, {"min_p": -0.1}, "`min_p` must be a number from 0 to 1, but is -0.1"),
        (top_a, {"min_p_pow": 0.5}, "`min_p_pow` must be a number of at least 1, but is 0.5"),
        (top_a, {"min_p_ratio": 2}, "`min_p_ratio` must be a number from 0 to 1, but is 2"),
    ],
)
def test_bad_values_are_named(function, settings_, says):
    with pytest.raises(ValueError) as error:
        function(torch.zeros(3, 10), **settings_)
    assert says in str(error.value)


def test_filters_are_found_by_name_or_function():
    assert find_filter("min_p") is min_p
    assert find_filter(top_p) is top_p
    own = find_filter(lambda logits: logits)
    assert callable(own)


def test_an_unknown_filter_gets_the_nearest_name():
    with pytest.raises(
        ValueError, match=r"one of top_k, top_p, min_p, top_a or a function.*did you mean 'top_k'"
    ):
        find_filter("topk")


def test_settings_are_bound_and_unknown_ones_get_the_nearest_name():
    assert kept(bind_filter("top_k", {"k": 1})(torch.tensor([0.0, 2.0, 1.0]))) == {1}
    with pytest.raises(
        ValueError, match=r"settings of top_p \(`thres`\), but holds `thresh`; did you mean 'thres'"
    ):
        bind_filter("top_p", {"thresh": 0.5})
    with pytest.raises(ValueError, match="`filter_kwargs` must be a dict"):
        bind_filter("top_p", [0.5])
    with pytest.raises(ValueError, match="left out"):
        bind_filter(None, {"k": 1})


def test_a_custom_function_gets_its_settings():
    def only(logits, *, token):
        return torch.full_like(logits, -math.inf).index_fill(-1, torch.tensor([token]), 0.0)

    assert kept(bind_filter(only, {"token": 3})(torch.zeros(5))) == {3}
    with pytest.raises(ValueError, match="settings of only"):
        bind_filter(only, {"tokens": 3})
