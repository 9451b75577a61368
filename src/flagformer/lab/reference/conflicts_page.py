"""The last parts of `docs/flags.md`: conflicts, and the table of all pairs."""

from __future__ import annotations

from collections.abc import Sequence

from flagformer.flags import CATALOGUE, NEEDS, SLOTS, Component
from flagformer.lab.reference.markdown import code, page, table
from flagformer.lab.reference.selectors import BASE, Choice, choices
from flagformer.lab.reference.verdicts import Verdict

WORKS, REFUSED, SAME = ".", "x", "="


def conflicts_part(found: Sequence[Verdict]) -> str:
    """Rules with reasons: slots with one component, needs of components, requirements, refused pairs."""
    return page(
        "## Conflicts",
        "Most slots take one component. Two of these for the same slot are refused:",
        table(("slot", "choose one"), _single_slots()),
        "A component may need what another one cannot give; the two are refused together:",
        table(("need", "needed by", "refused by", "because"), _needs()),
        "Values that other flags must have:",
        table(("component", "needs", "because"), _declared()) or "None in this version.",
        "All other refused pairs:",
        table(("first", "second", "message"), [_refused(v) for v in found if v.reason and not _same_slot(v)]),
    ).rstrip()


def pairs_part(found: Sequence[Verdict]) -> str:
    """Every pair of choices, as a triangular table."""
    all_choices = choices()
    refused = sum(1 for verdict in found if verdict.reason)
    base = ", ".join(f"{name}={value!r}" for name, value in BASE.items())
    return page(
        "## Pairs",
        f"All {len(found)} pairs of {len(all_choices)} choices, each resolved and built on the meta device "
        f"over the base `{base}`. {len(found) - refused} work (`{WORKS}`), {refused} are refused "
        f"(`{REFUSED}`, for the reasons above); `{SAME}` marks two values of one flag, and a flag that is "
        f"set with the other. Choices other than `True` and `False`: {_values(all_choices)}.",
        "```text\n" + "\n".join(_triangle(all_choices, found)) + "\n```",
    ).rstrip()


def _single_slots() -> list[tuple[str, str]]:
    rows = []
    for slot in SLOTS.values():
        chosen = [code(item.say()) for item in CATALOGUE.in_slot(slot.name) if item.select is not None]
        if len(chosen) > 1 and not slot.many:
            rows.append((code(slot.name), ", ".join(chosen)))
    return rows


def _needs() -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for need, words in NEEDS.items():
        needing = ", ".join(dict.fromkeys(code(item.say()) for item in CATALOGUE if need in item.needs))
        lacking = (item for item in CATALOGUE if need in item.lacks)
        rows += [(f"{code(need)}: {words}", needing, code(one.say()), one.lacks[need]) for one in lacking]
    return rows


def _declared() -> list[tuple[str, ...]]:
    return [(code(item.say()), need.say(), need.reason) for item in CATALOGUE for need in item.requires]


def _refused(verdict: Verdict) -> tuple[str, ...]:
    return code(verdict.first.name), code(verdict.second.name), verdict.reason


def _same_slot(verdict: Verdict) -> bool:
    components = (verdict.first.component, verdict.second.component)
    return all(components) and _slot(components[0]) == _slot(components[1])


def _slot(item: Component | None) -> str:
    return item.slot if item is not None else ""


def _values(all_choices: Sequence[Choice]) -> str:
    shown = [
        f"`{name}={value!r}`"
        for choice in all_choices
        for name, value in choice.flags.items()
        if not isinstance(value, bool) and "=" not in choice.name
    ]
    return ", ".join(shown)


def _triangle(all_choices: Sequence[Choice], found: Sequence[Verdict]) -> list[str]:
    signs = {(v.first.name, v.second.name): REFUSED if v.reason else WORKS for v in found}
    width = max(len(choice.name) for choice in all_choices)
    lines = []
    for row, choice in enumerate(all_choices):
        cells = [signs.get((other.name, choice.name), SAME) for other in all_choices[:row]]
        lines.append(f"{row + 1:3} {choice.name:{width}} " + "".join(f" {cell:>2}" for cell in cells))
    numbers = "".join(f" {row + 1:2}" for row in range(len(all_choices) - 1))
    return [line.rstrip() for line in [*lines, " " * (width + 5) + numbers]]
