"""A sample of `attack.py`: random mixes of flags equal a numpy oracle; every other flag has its own tests."""

import re
from pathlib import Path

import pytest
from attack import attacked, attacked_pair
from oracle_mixes import CHOICES, SIZES, mix, not_mixed

from flagformer.flags import CATALOGUE

# Number of seeds; about half are refused.
SAMPLE = 48
# Mixes that once found a mistake in the library or in the oracle.
FOUND = {
    "packed sequences with memory tokens, under the published selection": {
        "num_clusters": 2,
        "window_size": 3,
        "routing_selection": "leaky",
        "num_memory_tokens": 1,
    },
    "the same of a context": {
        "cross_attend": True,
        "context_num_clusters": 3,
        "context_selection": "leaky",
        "num_memory_tokens": 1,
    },
    "a token and keys that all see, under shared queries": {"shared_qk": True, "attn_num_mem_kv": 2},
    "learned keys of a context's clusters": {
        "cross_attend": True,
        "context_num_clusters": 3,
        "context_window_size": 3,
        "cluster_num_mem_kv": 2,
    },
}
TINY = {"model": "decoder", "num_tokens": 11, "max_seq_len": 340, "dim": 16, "heads": 4, "attn_dim_head": 8}


@pytest.mark.filterwarnings("ignore:.*leaks future tokens")
@pytest.mark.parametrize("seed", range(SAMPLE))
def test_a_random_mix_equals_the_oracle_or_is_refused(seed):
    faults, refusal = attacked(mix(seed), seed)
    assert refusal is not None or not faults, faults


@pytest.mark.filterwarnings("ignore:.*leaks future tokens")
@pytest.mark.parametrize("name", FOUND)
def test_past_findings_of_the_attack(name):
    faults, refusal = attacked({**TINY, "depth": 1, **FOUND[name]}, 0)
    assert refusal is None
    assert not faults, faults


@pytest.mark.parametrize("seed", range(12))
def test_an_encoder_decoder_equals_the_oracle_or_is_refused(seed):
    faults, refusal = attacked_pair(seed)
    assert refusal is not None or not faults, faults


@pytest.mark.parametrize(
    "flags",
    [
        {"cross_attn_talking_heads": True, "context_num_clusters": 2},
        {"cross_attn_shared_kv": True, "context_shared_qk": True},
    ],
)
def test_requirements_of_cross_attention_hold_for_cross_forms(flags):
    _, refusal = attacked({**TINY, "depth": 1, "cross_attend": True, **flags}, 0)
    assert refusal is not None


def test_a_flag_without_effect_on_cross_attention_is_no_conflict():
    flags = {"cross_attend": True, "attn_talking_heads": True, "cross_attn_talking_heads": False}
    faults, refusal = attacked({**TINY, "depth": 1, **flags, "context_num_clusters": 2}, 0)
    assert refusal is None
    assert not faults, faults


def test_most_of_the_sample_is_built():
    built = [seed for seed in range(SAMPLE) if attacked(mix(seed), seed, ())[1] is None]
    assert len(built) >= SAMPLE // 3


# Directories with tests of formulas, losses, training and states.
OTHERS = ("reference", "parity", "mixer", "core", "executors", "wrappers")


def test_every_flag_is_in_a_mix_or_in_a_test_of_its_own():
    """A test names the flag, or the component that it belongs to."""
    assert {*CHOICES, *SIZES} <= {*CATALOGUE.names()}
    folder = Path(__file__).parents[1]
    files = [path for name in OTHERS for path in (folder / name).glob("*.py")]
    words = {word for path in files for word in re.findall(r"\w+", path.read_text(encoding="utf-8"))}
    names = {flag: {flag, *(item.name for item in CATALOGUE.owners(flag))} for flag in not_mixed()}
    missing = [flag for flag, own in names.items() if not own & words]
    assert not missing, f"neither the oracle nor a test in {OTHERS} computes {missing}"
