"""The pairs of choices to test: all in `make matrix`, a sample by their names in `make test`."""

from functools import cache
from itertools import combinations
from zlib import crc32

from property_settings import TINY
from property_subject import refusal

from flagformer.lab.reference import choices, pairs, settings

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# Every choice is in at least this many pairs of the sample; the table of refusals is tested completely.
EACH = 5
LARGEST = 12  # choices of a group
PAIRED = {frozenset((first.name, second.name)) for first, second in PAIRS.values()}


def sampled():
    """The names of the pairs of `make test`."""
    chosen = set()
    for choice in choices():
        mine = [name for name, pair in PAIRS.items() if choice.name in (pair[0].name, pair[1].name)]
        chosen.update(sorted(mine, key=_number)[:EACH])
    return [name for name in PAIRS if name in chosen]


def groups_of_each():
    """Groups of choices, each choice in one: a graph of a group takes little longer than that of a pair."""
    groups = []
    for choice in choices():
        for group in groups:
            if len(group) < LARGEST and joins(choice, group):
                group.append(choice)
                break
        else:
            groups.append([choice])
    return groups


def groups_of_pairs():
    """Groups of choices, every pair in one if it is not refused."""
    built = set(map(frozenset, built_pairs()))
    groups, left = [], set(built)
    while left:
        names = min(map(sorted, left))
        group = [choice for choice in choices() if choice.name in names]
        while len(group) < LARGEST and (choice := _most_new(group, built, left)):
            group.append(choice)
        groups.append(group)
        left -= set(map(_key, combinations(group, 2)))
    return groups


def _most_new(group, built, left):
    """The choice that adds the most pairs to a group; None if none does."""
    new = {}
    for choice in choices():
        mine = {_key((choice, member)) for member in group}
        if choice not in group and mine <= built and mine & left:
            new[choice.name] = len(mine & left), choice
    for _, choice in sorted(new.values(), key=lambda each: -each[0]):
        if joins(choice, group):
            return choice
    return None


def joins(choice, group):
    """Whether a group with another choice is one model."""
    return all(_key((choice, member)) in PAIRED for member in group) and not refusal(tiny(*group, choice))


def _key(pair):
    return frozenset(choice.name for choice in pair)


def _number(name):
    return crc32(name.encode())


def tiny(*chosen):
    """The flags of a tiny decoder of some choices."""
    return {**settings(*chosen), **TINY}


@cache
def built_pairs():
    """The names of the two choices of every pair that is a model."""
    return [(one.name, two.name) for one, two in PAIRS.values() if refusal(tiny(one, two)) is None]
