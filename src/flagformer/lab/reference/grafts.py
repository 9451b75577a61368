"""The table of flags whose grafts start without effect, in docs/how-to-start-from-a-published-model.md."""

from __future__ import annotations

from flagformer.flags import ANY, CATALOGUE
from flagformer.lab.reference.markdown import code, table
from flagformer.lab.reference.marked import with_part

PAGE = "docs/how-to-start-from-a-published-model.md"


def page_with_grafts(text: str) -> str:
    """Return the page with the table of the present catalogue between its markers."""
    return with_part(text, "grafts", table(("flag", "component or parameter"), [*_components(), *_params()]))


def _components() -> list[tuple[str, str]]:
    """(flag, component) of each component that can start without effect."""
    found: dict[str, list[str]] = {}
    for item in CATALOGUE:
        if item.starts_neutral and item.select is not None:
            found.setdefault(item.select, []).append(item.name)
    return [(code(flag), ", ".join(names)) for flag, names in found.items() if flag != "ff_moe"]


def _params() -> list[tuple[str, str]]:
    """(flag with its value, description) of each flag that adds parameters without effect."""
    rows = []
    for name in CATALOGUE.names():
        flag = CATALOGUE.param(name).flag
        if flag.neutral is not None:
            rows.append((code(name if flag.neutral is ANY else f"{name}={flag.neutral}"), flag.doc))
    return rows
