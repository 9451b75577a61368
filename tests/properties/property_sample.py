"""The pairs of choices to test: all in `make matrix`, a sample by their names in `make test`."""

from zlib import crc32

from property_settings import TINY
from property_subject import refusal

from flagformer.reference import choices, pairs, settings

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# Every choice is in at least this many pairs of the sample; the table of refusals is tested completely.
EACH = 5


def sampled():
    """The names of the pairs of `make test`."""
    return _of_every_choice(lambda names: names[:EACH])


def graphed():
    """Pairs whose graphs are tested too, which takes twice as long as all other checks: one of each choice
    that is not refused."""
    return _of_every_choice(lambda names: [next(name for name in names if not _refused(name))])


def _of_every_choice(draw):
    """The sample of each choice's pairs: those whose names hash to the smallest numbers."""
    chosen = set()
    for choice in choices():
        mine = [name for name, pair in PAIRS.items() if choice.name in (pair[0].name, pair[1].name)]
        chosen.update(draw(sorted(mine, key=lambda name: crc32(name.encode()))))
    return [name for name in PAIRS if name in chosen]


def tiny(*chosen):
    """The flags of a tiny decoder of some choices."""
    return {**settings(*chosen), **TINY}


def _refused(name):
    return refusal(tiny(*PAIRS[name])) is not None
