"""Mixes of choices in which every three choices occur together, unless the library refuses the three."""

import random
from functools import cache
from itertools import combinations

from property_sample import built_pairs, joins, tiny
from property_subject import refusal

from flagformer.lab.reference import choices

LARGEST = 9  # choices of a mix: 84 triples


@cache
def covering_mixes(seed=0):
    """Tuples of choices: each three choices are in one of them, or no model of the three can be built.

    A triple that no mix has starts the next one, which grows by the choice that adds most triples.
    """
    draw, partners = random.Random(seed), _partners()
    # first choice -> second -> the third ones still to cover
    left = {one: {two: partners[one] & partners[two] for two in partners[one]} for one in partners}
    found = []
    for one in sorted(partners, key=lambda name: len(partners[name])):
        for two in sorted(left[one]):
            while left[one][two]:
                three = min(left[one][two])
                mix = [one, two, three]
                if refusal(tiny(*map(_choice, mix))) is None:
                    found.append(mix := _grown(mix, partners, left, draw))
                for a, b, c in combinations(mix, 3):
                    for x, y, z in ((a, b, c), (a, c, b), (b, c, a)):
                        left[x][y].discard(z)
                        left[y][x].discard(z)
    return [tuple(map(_choice, mix)) for mix in found]


def random_mixes(seed, count):
    """This many mixes of up to nine choices, drawn."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        mix = []
        for choice in draw.sample(choices(), len(choices())):
            if len(mix) < LARGEST and joins(choice, mix):
                mix.append(choice)
        found.append(tuple(mix))
    return found


def _grown(mix, partners, left, draw):
    """The mix with further choices, each the one that adds most triples; ties are drawn."""
    tried = set(mix)
    while len(mix) < LARGEST:
        fitting = set.intersection(*(partners[name] for name in mix)) - tried
        if not fitting:
            break
        new = {name: sum(name in left[a][b] for a, b in combinations(mix, 2)) for name in sorted(fitting)}
        best = max(new.values())
        if best == 0 and len(mix) > 2:
            break
        tried.add(chosen := draw.choice([name for name, count in new.items() if count == best]))
        if refusal(tiny(*map(_choice, [*mix, chosen]))) is None:
            mix = [*mix, chosen]
    return mix


@cache
def _partners():
    """Choice -> the choices with which it is a model."""
    found = {choice.name: set() for choice in choices()}
    for one, two in built_pairs():
        found[one].add(two)
        found[two].add(one)
    return found


def _choice(name):
    return next(choice for choice in choices() if choice.name == name)
