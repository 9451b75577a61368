"""Shared by benchmarks that train models: their arguments, and the file of their runs."""

import argparse
import json
from pathlib import Path


def arguments(description: str, names: list[str]) -> argparse.ArgumentParser:
    """The common arguments; `names` are the models."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=names, choices=names)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--json", type=Path, help="add every run to this file")
    parser.add_argument("--figure", type=Path, help="draw what the file holds, or this run")
    parser.add_argument("--threads", type=int, default=1)
    return parser


def collect(path: Path | None, rows: list[dict]) -> list[dict]:
    """Add runs to a file, replacing those of the same name and seed, a line each; return all of them."""
    if path is None:
        return rows
    held = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    new = {(row["name"], row["seed"]) for row in rows}
    rows = [row for row in held if (row["name"], row["seed"]) not in new] + rows
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    return rows
