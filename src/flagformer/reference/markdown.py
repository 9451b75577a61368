"""Small pieces of Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

ARXIV = re.compile(r"(arXiv:)?\b(\d{4}\.\d{5})\b")


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table, or nothing without rows."""
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    rule = "|" + "---|" * len(heads)
    return "\n".join(["| " + " | ".join(heads) + " |", rule, *lines]) if lines else ""


def code(text: object) -> str:
    return f"`{text}`"


def linked(paper: str) -> str:
    """`arXiv:1910.07467, section 3` with a link at the number."""
    return ARXIV.sub(lambda found: f"[{found[2]}](https://arxiv.org/abs/{found[2]})", paper)


def page(*parts: str) -> str:
    """Parts with an empty line between; empty ones are left out."""
    return "\n\n".join(part for part in parts if part) + "\n"
