"""Which pairs of choices run where: all in `make matrix`, a sample that their names decide in `make test`."""

from zlib import crc32

from flagformer.reference import choices, pairs

PAIRS = {f"{first.name} x {second.name}": (first, second) for first, second in pairs()}
# Every choice is in so many pairs of the sample at least; which pairs are refused, the whole table is asked.
EACH = 5
# In so many of them its graph is made too, which takes twice as long as all other checks.
EACH_GRAPH = 2


def sampled(each=EACH):
    """The names of the pairs of `make test`."""
    chosen = {name for choice in choices() for name in drawn(choice.name, each)}
    return [name for name in PAIRS if name in chosen]


def drawn(choice, each):
    """The pairs of a choice that are run: those whose names give the smallest numbers."""
    mine = [name for name, pair in PAIRS.items() if choice in (pair[0].name, pair[1].name)]
    return sorted(mine, key=lambda name: crc32(name.encode()))[:each]
