"""Refused pairs of flags: the golden list, and the flags that a card's own text does not name."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache

from flagformer.flags import CATALOGUE
from flagformer.lab.reference.cards import cards
from flagformer.lab.reference.markdown import code
from flagformer.lab.reference.marked import marked, without_part
from flagformer.lab.reference.selectors import Choice
from flagformer.lab.reference.verdicts import verdicts

PART = "conflicts"
SECTION = re.compile(r"^## Conflicts\n(.*?)(?=^## )", re.MULTILINE | re.DOTALL)


def refused_pairs() -> str:
    """Return the text of `tests/golden/refused-pairs.txt`: a line per refused pair, with the reason."""
    lines = [f"{v.first.name} x {v.second.name}: {v.reason}" for v in verdicts() if v.reason]
    return "\n".join(lines) + "\n"


def card_with_conflicts(name: str, text: str) -> str:
    """Return a card whose section `Conflicts` names the flags of every refused pair.

    Flags that the hand-written text does not name are listed in a generated part at its end.
    """
    text = without_part(text, PART)
    section = SECTION.search(text)
    if section is None:
        return text
    omitted = [
        choice.name
        for choice in _refused_with().get(name, ())
        if not any(f"`{flag}" in section[1] for flag in (*choice.flags, *choice.extra))
    ]
    if not omitted:
        return text
    part = marked(PART, f"Refused with: {', '.join(map(code, dict.fromkeys(omitted)))}.")
    return f"{text[: section.end(1)].rstrip()}\n{part}\n{text[section.end(1) :]}"


@cache
def _refused_with() -> dict[str, list[Choice]]:
    """Return the choices that are refused with the component of each card."""
    names = {item.cls: name for name, item in cards().items()}
    found: dict[str, list[Choice]] = defaultdict(list)
    for verdict in verdicts():
        if verdict.reason:
            for one, other in ((verdict.first, verdict.second), (verdict.second, verdict.first)):
                found[_card_of(one, names)].append(other)
    return found


def _card_of(choice: Choice, names: dict[type, str]) -> str:
    if choice.component is not None:
        return names[choice.component.cls]
    owners = CATALOGUE.owners(choice.name)
    return f"{owners[0].slot}-{choice.name}.md" if owners else ""
