"""Weights of x-transformers 2.31.10 give the same logits here, for every flag of the catalogue."""

import pytest
from parity_cases import ALONE, CASES, WITHOUT_PARITY, Case, build_ours, build_peer, difference

from flagformer.flags import CATALOGUE
from flagformer.interop.x_transformers import load_x_transformers

# fp32: logits are about 1, so one rounding is 1e-7, and two layers summed in another order come to 2e-6. A
# wrong formula (a factor, an order of heads) shows by 1e-3 and more, as weights are far from their start.
TOLERANCE = 1e-5


@pytest.mark.parametrize("name", CASES)
def test_same_logits(name: str) -> None:
    case = CASES[name]
    theirs, ours = build_peer(case), build_ours(case)
    load_x_transformers(theirs, ours)
    assert difference(ours, theirs, case) < TOLERANCE


def test_every_flag_has_a_case() -> None:
    said = {name for case in ALONE.values() for name in case.our_flags()}
    missing = [name for name in CATALOGUE.names() if name not in said and name not in WITHOUT_PARITY]
    assert not missing, f"no parity case, and no reason in WITHOUT_PARITY, for {missing}"


@pytest.mark.parametrize(
    "component",
    [item for item in CATALOGUE if item.select and item.select not in WITHOUT_PARITY],
    ids=lambda item: item.name,
)
def test_every_selected_component_is_compared(component) -> None:
    """Also flags with two meanings: `attn_flash=True` and `attn_flash=False` select different kernels."""
    cases = [case.our_flags() for case in ALONE.values() if component.select in case.our_flags()]
    if component.when is not ...:
        cases = [flags for flags in cases if flags[component.select] == component.when]
    assert cases, f"no parity case selects {component.name} by `{component.select}`"


def test_no_reason_is_stale() -> None:
    assert set(WITHOUT_PARITY) <= set(CATALOGUE.names())


@pytest.mark.parametrize(
    ("flags", "wrong"),
    [
        ({}, {"ff_swish": True}),
        ({"attn_qk_norm": True}, {"attn_qk_norm_scale": 9.0}),
        ({"alibi_pos_bias": True}, {"alibi_num_heads": 3}),
        ({"rotary_pos_emb": True}, {"rotary_interpolation_factor": 1.1}),
        ({"rel_pos_bias": True}, {"rel_pos_max_distance": 64}),
        ({}, {"attn_add_zero_kv": True}),
    ],
    ids=lambda value: " ".join(value) or "plain",
)
def test_a_flag_that_leaves_no_weight_is_seen_in_the_logits(flags: dict, wrong: dict) -> None:
    case = Case(flags, ours=wrong)
    theirs, ours = build_peer(case), build_ours(case)
    load_x_transformers(theirs, ours)
    assert difference(ours, theirs, case) > 100 * TOLERANCE
