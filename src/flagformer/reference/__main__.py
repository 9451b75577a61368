"""`python -m flagformer.reference`: writes the generated files; `--check` names those that are stale."""

from __future__ import annotations

import argparse
import sys

from flagformer.reference.files import root, stale, write


def main(arguments: list[str] | None = None) -> int:
    """0: everything is fresh now; 1: a file is stale under `--check`, or there is no clone to write to."""
    parser = argparse.ArgumentParser(prog="python -m flagformer.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    checking = parser.parse_args(arguments).check
    try:
        folder = root()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not checking:
        print("\n".join(f"wrote {name}" for name in write(folder)) or "everything was fresh")
        return 0
    old = stale(folder)
    for name in old:
        print(f"{name} is stale: run `make docs` and commit it", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    raise SystemExit(main())
