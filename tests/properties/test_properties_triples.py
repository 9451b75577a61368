"""Every three choices together have every property: all in `make matrix`, a random part in `make test`."""

import sys

from property_checks import checks_of, failures
from property_sample import tiny
from property_subject import Subject
from property_triples import covering_mixes, random_mixes

from commit_sample import number

PARTS = 40
COUNT = 8


def broken(mixes):
    """The failures of these mixes, each named with its choices."""
    found = []
    for mix in mixes:
        subject = Subject(tiny(*mix))
        names = ", ".join(choice.name for choice in mix)
        found += [f"{names}: {text}" for text in failures(subject, checks_of(subject))]
    return found


def pytest_generate_tests(metafunc):
    if "part" in metafunc.fixturenames:
        whole = metafunc.config.getoption("matrix")
        metafunc.parametrize("part", range(PARTS) if whole else ["random"])


def test_every_three_choices_have_every_property(part):
    if part == "random":
        sys.stdout.write(f"FLAGFORMER_SEED={number()}\n")  # shown with a failure
        assert not broken(random_mixes(number(), COUNT))
    else:
        assert not broken(covering_mixes()[part::PARTS])
