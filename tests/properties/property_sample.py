"""The pairs of choices to test: all in `make matrix`, a sample by their names in `make test`."""

from zlib import crc32

from property_settings import TINY
from property_subject import refusal

from flagformer.lab.reference import choices, pairs, settings

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# Every choice is in at least this many pairs of the sample; the table of refusals is tested completely.
EACH = 5


def sampled():
    """The names of the pairs of `make test`."""
    chosen = set()
    for choice in choices():
        mine = [name for name, pair in PAIRS.items() if choice.name in (pair[0].name, pair[1].name)]
        chosen.update(sorted(mine, key=_number)[:EACH])
    return [name for name in PAIRS if name in chosen]


def graphed():
    """Pairs whose graphs are tested too, which takes twice as long as all other checks: each choice is in one
    that is not refused. Pairs of two choices without a graph come first."""
    chosen, missing = set(), {choice.name for choice in choices()}
    for least in (2, 1):
        for name in sorted(sampled(), key=_number):
            new = missing & {choice.name for choice in PAIRS[name]}
            if len(new) >= least and not _refused(name):
                chosen.add(name)
                missing -= new
    return [name for name in PAIRS if name in chosen]


def _number(name):
    return crc32(name.encode())


def tiny(*chosen):
    """The flags of a tiny decoder of some choices."""
    return {**settings(*chosen), **TINY}


def _refused(name):
    return refusal(tiny(*PAIRS[name])) is not None
