"""Each claim of `docs/flags.md` about a flag with caches, padding, packing and tracing is tested."""

from itertools import product

import pytest
from property_checks import (
    bf16_is_finite,
    checks_of,
    compiles,
    copies,
    exports,
    failures,
    learns_what_it_shows,
    low_precision_is_finite,
    rows_are_independent,
)
from property_sample import FEW, calls_of, grouped
from property_settings import OTHER_INPUTS, TINY, one_block
from property_subject import Subject
from test_properties_generation import NO_LOGIT_PER_TOKEN
from test_properties_singles import ALL

from commit_sample import part_of
from flagformer.flags import CATALOGUE
from flagformer.lab.reference.features import features, refusal, settings_of
from flagformer.lab.reference.together_page import answer

# Checks that every single setting runs cover a column; the rest are flags, and tested below.
HELD_BY = {
    "cache": "cached_equals_full",
    "left padding": "left_padding",
    "packing": "packing",
    "bf16": "bf16_is_finite",
    "compile": compiles.__name__,
    "export": exports.__name__,
}
FLAGS = [name for name in CATALOGUE.names() if name not in OTHER_INPUTS | {"causal"}]
CALLED = {feature.name: feature for feature in features() if not feature.flags}
SET = {feature.name: feature for feature in features() if feature.flags}
# Memories add no module and no step to a model called without them, an executor no module to copy:
# test_properties_singles.py checks the same model.
LIKE = {
    "memories": {copies, bf16_is_finite, low_precision_is_finite, learns_what_it_shows, rows_are_independent},
    "reversible": {copies, low_precision_is_finite},
}

PARTS = 6


def single(flag):
    """A setting of the tests in which a flag is set."""
    return next(name for name, flags in ALL.items() if flag in {**flags, **TINY})


def test_every_flag_has_a_row():
    assert [flag for flag in FLAGS if not settings_of(flag)] == []


@pytest.mark.parametrize("flag", FLAGS)
def test_claims_about_a_flag_are_tested(flag):
    subject = Subject({**ALL[single(flag)], **TINY})
    tried = {check.__name__ for check in (*checks_of(subject), compiles, exports)}
    for name, feature in CALLED.items():
        said, why = answer(flag, feature)
        assert said in ("yes", "no")
        assert (said == "no") == bool(why)
        if name == "generation":
            assert (said == "no") == (single(flag) in NO_LOGIT_PER_TOKEN or subject.kind == "encoder")
        else:
            assert (said == "yes") == (HELD_BY[name] in tried), f"{name}: {why or 'not tested'}"


@pytest.mark.parametrize(("feature", "part"), part_of(product(SET, range(PARTS)), 2))
def test_combinations_in_the_table_have_every_property(feature, part):
    """A few flags in one model."""
    builds = {}
    for flag in FLAGS[part::PARTS]:
        for number, flags in enumerate(settings_of(flag)):
            if not refusal(SET[feature], flags):
                builds[f"{flag} ({number})"] = one_block({**flags, **TINY, **SET[feature].flags})
    found = []
    for members, flags in grouped(builds, FEW, calls_of):
        subject = Subject(flags)
        checks = [check for check in checks_of(subject) if check not in LIKE[feature]]
        found += [f"{', '.join(members)}: {text}" for text in failures(subject, checks)]
    assert not found
