"""`python -m flagformer.lab.reference` writes the generated files; `--check` lists the stale ones."""

from __future__ import annotations

import argparse
import sys

from flagformer.lab.reference.files import root, stale, write


def main(arguments: list[str] | None = None) -> int:
    """Return 0 if all files are up to date; 1 if one is stale under `--check`, or without a clone."""
    parser = argparse.ArgumentParser(prog="python -m flagformer.lab.reference", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a file is stale")
    checking = parser.parse_args(arguments).check
    try:
        folder = root()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    if not checking:
        print("\n".join(f"wrote {name}" for name in write(folder)) or "all files are up to date")
        return 0
    old = stale(folder)
    for name in old:
        print(f"{name} is stale: run `make docs` and commit it", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    raise SystemExit(main())
