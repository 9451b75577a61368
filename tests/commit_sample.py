"""Cases of which `make test` runs one part, another one for each commit; `make matrix` runs all."""

import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def number():
    """FLAGFORMER_SEED, or a number of the commit."""
    given = os.environ.get("FLAGFORMER_SEED")
    if given is not None:
        return int(given)
    root = Path(__file__).parents[1]
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    return int(head.stdout[:8] or "0", 16)


def part_of(cases, parts):
    """Every `parts`-th case, from one that the commit chooses; all under `--matrix`."""
    cases = list(cases)
    return cases if os.environ.get("FLAGFORMER_ALONE") else cases[number() % parts :: parts]
