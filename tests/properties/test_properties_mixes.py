"""Many choices together: pairs are tested completely, these are a fixed random sample."""

import random

import pytest
from property_checks import checks_of, failures
from property_settings import TINY, cross_forms, tunings
from property_subject import Subject, refusal

from flagformer.flags import SLOTS
from flagformer.lab.reference import choices, settings
from flagformer.models.build import MODELS

COUNT = 40


def drawn(seed):
    """Flags of a model with four to nine choices, at most one for each slot with one component."""
    draw = random.Random(seed)
    by_slot = {}
    for choice in choices():
        if "model" not in choice.flags:
            takes_slot = choice.component is not None and not SLOTS[choice.component.slot].many
            key = choice.component.slot if takes_slot else choice.name
            by_slot.setdefault(key, []).append(choice)
    chosen = [draw.choice(by_slot[key]) for key in draw.sample(sorted(by_slot), draw.randint(4, 9))]
    flags = {**settings(*chosen), "model": draw.choice(sorted(MODELS))}
    for extra in draw.sample([*tunings().values(), *cross_forms().values()], draw.randint(0, 4)):
        if not refusal({**flags, **extra}):
            flags |= extra
    return {**flags, **TINY}


@pytest.mark.parametrize("seed", range(COUNT))
def test_mix_has_every_property(seed):
    flags = drawn(seed)
    while refusal(flags):
        seed += COUNT  # sampled again until something is built
        flags = drawn(seed)
    subject = Subject(flags)
    assert not failures(subject, checks_of(subject)), flags
