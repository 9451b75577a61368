"""Generated parts of pages that are otherwise written by hand, between two markers."""

from __future__ import annotations

import re

END = "<!-- end of generated part -->"


def marker(name: str) -> str:
    return f"<!-- generated: {name} -->"


def without_part(text: str, name: str) -> str:
    """Return the text without the generated part and the empty line before it."""
    return re.sub(_pattern(name), "", text, flags=re.DOTALL)


def with_part(text: str, name: str, part: str) -> str:
    """Return the text with this generated part in place of the old one."""
    return re.sub(_pattern(name), lambda _: marked(name, part), text, flags=re.DOTALL)


def marked(name: str, part: str) -> str:
    return f"\n{marker(name)}\n{part}\n{END}\n"


def _pattern(name: str) -> str:
    return rf"\n{re.escape(marker(name))}\n.*?{re.escape(END)}\n"
