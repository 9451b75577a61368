"""The pairs of choices to test: all in `make matrix`, a sample by their names in `make test`."""

import os
from functools import cache
from itertools import combinations
from zlib import crc32

import torch
from property_settings import SEES_LITTLE, TINY
from property_subject import refusal

import flagformer
from flagformer.lab.reference import choices, pairs, settings

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# Every choice is in at least this many pairs of the sample; the table of refusals is tested completely.
EACH = 2
LARGEST = 12  # choices of a group
SEVERAL = 40  # settings of a group in which each acts by itself
FEW = 8  # settings of a group with every property
PAIRED = {frozenset((first.name, second.name)) for first, second in PAIRS.values()}


def sampled():
    """The names of the pairs of `make test`."""
    chosen = set()
    for choice in choices():
        mine = [name for name, pair in PAIRS.items() if choice.name in (pair[0].name, pair[1].name)]
        chosen.update(sorted(mine, key=_number)[:EACH])
    return [name for name in PAIRS if name in chosen]


def grouped(single, largest, key=None):
    """Settings (name -> flags) in groups, each of which is one model: a list of (names, flags of the model).

    A setting joins the first group of fewer than `largest` that has the same value of `key`, a function of
    flags, and builds with it. Each is alone in `make matrix`.
    """
    if os.environ.get("FLAGFORMER_ALONE"):
        return [([name], flags) for name, flags in single.items()]
    groups = []
    for name, mine in single.items():
        kind = key and key(mine)
        for members, flags, other in groups:
            agree = all(flags.get(flag, value) == value for flag, value in mine.items())
            if kind == other and len(members) < largest and agree and refusal({**flags, **mine}) is None:
                members.append(name)
                flags.update(mine)
                break
        else:
            groups.append(([name], dict(mine), kind))
    found = []
    for members, flags, kind in groups:
        whole = len(members) == 1 or key is None or key(flags) == kind
        found += [(members, flags)] if whole else [([name], single[name]) for name in members]
    return found


def calls_of(flags):
    """What checks distinguish in a model: with the same, settings in one model have the checks of each."""
    with torch.device("meta"):
        model = flagformer.build(flags)
    layers, slots = model.attn_layers, bool(model.num_memory_slots)
    remembers = None if slots else refusal({**without(flags, "shift_mem_down"), "max_mem_len": 16}) is None
    little = bool(SEES_LITTLE & set(flags))
    return slots, remembers, little, layers.has_cross, layers.has_self, layers.has_mixers, model.can_cache


def without(flags, name):
    return {flag: value for flag, value in flags.items() if flag != name}


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
