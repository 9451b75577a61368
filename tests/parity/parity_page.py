"""The tables of `docs/parity.md`, and the flags that x-transformers has too."""

import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

from parity_peer import signatures

from flagformer.flags import CATALOGUE

PAGE = (Path(__file__).parents[2] / "docs" / "parity.md").read_text(encoding="utf-8")
PREFIXES = {"Attention": "attn_", "FeedForward": "ff_"}


class Row(NamedTuple):
    of: str
    name: str
    default: str
    here: str
    verdict: str
    why: str


def rows() -> list[Row]:
    found, of = [], ""
    for line in PAGE.splitlines():
        if line.startswith("## "):
            of = line[3:]
        match = re.fullmatch(r"\| `(\w+)` \| (.*?) \| (.*?)\| (\w+) \|(.*)\|", line)
        if match:
            name, *cells = (cell.strip() for cell in match.groups())
            found.append(Row(of, name, *cells))
    return found


ROWS = rows()


@cache
def counterparts() -> frozenset[str]:
    """The flags for an argument of a constructor: of 1.27 by the page, of 2.31 by their name."""
    old = {
        row.here.strip("`").split("=")[0]
        for row in ROWS
        if "." not in row.of and row.verdict in ("equal", "differs")
    }
    called = {of: names for of, names in signatures().items() if "." not in of}
    new = {PREFIXES.get(of, "") + name for of, names in called.items() for name in names}
    return frozenset((old | new) & {*CATALOGUE.names()})
