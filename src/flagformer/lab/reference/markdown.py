"""Helpers that write Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

ARXIV = re.compile(r"(arXiv:)?\b(\d{4}\.\d{5})\b")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table; empty without rows."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + "---|" * len(heads)
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *lines]) if lines else ""


def code(text: object) -> str:
    return f"`{text}`"


def linked(paper: str) -> str:
    """Return `arXiv:1910.07467, section 3` with the number as a link."""
    return ARXIV.sub(lambda found: f"[{found[2]}](https://arxiv.org/abs/{found[2]})", paper)


def page(*parts: str) -> str:
    """Join the parts that are not empty, with an empty line between them."""
    return "\n\n".join(part for part in parts if part) + "\n"
