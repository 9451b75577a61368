"""The generated files: their contents, and the check whether they are up to date."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from flagformer.lab.reference.card_conflicts import card_with_conflicts, refused_pairs
from flagformer.lab.reference.flags_page import flags_page
from flagformer.lab.reference.forward_picture import forward_picture
from flagformer.lab.reference.grafts import PAGE as GRAFTS
from flagformer.lab.reference.grafts import page_with_grafts
from flagformer.lab.reference.models_page import models_page
from flagformer.lab.reference.objectives_page import objectives_page
from flagformer.lab.reference.readme_table import readme_with_table
from flagformer.lab.reference.schema import schema
from flagformer.lab.reference.study_schema import study_schema
from flagformer.lab.reference.training_page import training_page
from flagformer.lab.reference.typed import typed_source


def _json(make: Callable[[], dict[str, Any]]) -> str:
    return json.dumps(make(), indent=2) + "\n"


# Paths from the root of a clone. typed.py comes first, as the rest of the package imports it.
FILES: Mapping[str, Callable[[], str]] = {
    "src/flagformer/flags/typed.py": typed_source,
    "docs/flags.schema.json": lambda: _json(schema),
    "docs/study.schema.json": lambda: _json(study_schema),
    "docs/flags.md": flags_page,
    "docs/reference/models.md": models_page,
    "docs/objectives.md": objectives_page,
    "docs/training.md": training_page,
    "docs/forward.svg": forward_picture,
    "tests/golden/refused-pairs.txt": refused_pairs,
}


def parts(folder: Path) -> dict[str, Callable[[str], str]]:
    """Return the pages with a generated part that are in the folder, each as a function of its text."""
    found: dict[str, Callable[[str], str]] = {"README.md": readme_with_table, GRAFTS: page_with_grafts}
    for path in sorted((folder / "docs/papers").glob("*.md")):
        found[f"docs/papers/{path.name}"] = partial(card_with_conflicts, path.name)
    return {name: change for name, change in found.items() if (folder / name).is_file()}


def root() -> Path:
    """Return the root of the clone from which the package is installed in editable mode.

    Raises:
        ValueError: if it is installed in another way.
    """
    folder = Path(__file__).resolve().parents[4]
    if not (folder / "pyproject.toml").is_file():
        raise ValueError(
            "generated files and new components belong to a clone, but flagformer is installed without one: "
            'run `pip install --editable ".[dev]"` in a clone first'
        )
    return folder


@cache
def text_of(name: str) -> str:
    """Return the generated text of a file; cached, as it takes seconds."""
    return FILES[name]()


def stale(folder: Path) -> list[str]:
    """Return the files that differ from their generated text."""
    return list(_changes(folder))


def write(folder: Path) -> list[str]:
    """Write the stale files and return their names."""
    changes = _changes(folder)
    for name, text in changes.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return list(changes)


def _changes(folder: Path) -> dict[str, str]:
    """Return the new text of each stale file."""
    texts = {name: text_of(name) for name in FILES}
    for name, change in parts(folder).items():
        texts[name] = change((folder / name).read_text(encoding="utf-8"))
    return {name: text for name, text in texts.items() if _read(folder / name) != text}


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None
