"""The generated files: their contents, and the check whether they are up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from flagformer.reference.flags_page import flags_page
from flagformer.reference.forward_picture import forward_picture
from flagformer.reference.schema import schema
from flagformer.reference.study_schema import study_schema
from flagformer.reference.typed import typed_source


def _json(make: Callable[[], dict[str, Any]]) -> str:
    return json.dumps(make(), indent=2) + "\n"


# Paths from the root of a clone. typed.py comes first, as the rest of the package imports it.
FILES: Mapping[str, Callable[[], str]] = {
    "src/flagformer/flags/typed.py": typed_source,
    "docs/flags.schema.json": lambda: _json(schema),
    "docs/study.schema.json": lambda: _json(study_schema),
    "docs/flags.md": flags_page,
    "docs/forward.svg": forward_picture,
}


def root() -> Path:
    """Return the root of the clone from which the package is installed in editable mode.

    Raises:
        ValueError: if it is installed in another way.
    """
    folder = Path(__file__).resolve().parents[3]
    if not (folder / "pyproject.toml").is_file():
        raise ValueError(
            "the generated files belong to a clone, but flagformer is installed without one: "
            'run `pip install --editable ".[dev]"` in a clone first'
        )
    return folder


@cache
def text_of(name: str) -> str:
    """Return the generated text of a file; cached, as it takes seconds."""
    return FILES[name]()


def stale(folder: Path) -> list[str]:
    """Return the files that differ from their generated text."""
    return [name for name in FILES if _read(folder / name) != text_of(name)]


def write(folder: Path) -> list[str]:
    """Write the stale files and return their names."""
    names = stale(folder)
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text_of(name), encoding="utf-8")
    return names


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
