"""The last parts of `docs/flags.md`: what cannot go together, and every pair at a glance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from flagformer.flags import CATALOGUE, SLOTS, Component
from flagformer.flags.conflicts import EXECUTION, REASONS
from flagformer.reference.markdown import code, page, table
from flagformer.reference.selectors import BASE, Choice, choices
from flagformer.reference.verdicts import Verdict

WORKS, REFUSED, SAME = ".", "x", "="


def conflicts_part(found: Sequence[Verdict]) -> str:
    """Rules and their reasons: crowded slots, needs of the kernel, declared constraints, refused pairs."""
    return page(
        "## Conflicts",
        "A slot with one place takes one filler. Of these, any two are refused:",
        table(("slot", "choose one"), _crowds()),
        "Where a filler needs what a kernel does not honour, `attn_flash` demands in vain:",
        table(("filler", "needs", "honoured by", "otherwise refused, because"), _needs("kernel", REASONS)),
        "The same of executors:",
        table(
            ("filler", "needs", "honoured by", "otherwise refused, because"), _needs("executor", EXECUTION)
        ),
        "A declared constraint:",
        table(("filler", "needs", "because"), _declared()) or "None in this version.",
        "All other refused pairs:",
        table(("one", "other", "message"), [_refused(v) for v in found if v.reason and not _crowded(v)]),
    ).rstrip()


def pairs_part(found: Sequence[Verdict]) -> str:
    """Every pair of choices: a triangle of signs."""
    all_choices = choices()
    refused = sum(1 for verdict in found if verdict.reason)
    base = ", ".join(f"{name}={value!r}" for name, value in BASE.items())
    return page(
        "## Pairs",
        f"All {len(found)} pairs of {len(all_choices)} choices, each resolved and built on the meta device "
        f"over the base `{base}`. {len(found) - refused} work (`{WORKS}`), {refused} are refused "
        f"(`{REFUSED}`, for the reasons above); `{SAME}` marks two values of one flag, and a flag that the "
        "other brings along. Choices that are not "
        f"`True` or `False` stand at {_values(all_choices)}.",
        "```text\n" + "\n".join(_triangle(all_choices, found)) + "\n```",
    ).rstrip()


def _crowds() -> list[tuple[str, str]]:
    rows = []
    for slot in SLOTS.values():
        chosen = [code(item.say()) for item in CATALOGUE.in_slot(slot.name) if item.select is not None]
        if len(chosen) > 1 and not slot.many:
            rows.append((code(slot.name), ", ".join(chosen)))
    return rows


def _needs(slot: str, reasons: Mapping[str, str]) -> list[tuple[str, ...]]:
    serving = CATALOGUE.in_slot(slot)
    rows: list[tuple[str, ...]] = []
    for item in CATALOGUE:
        for need in sorted(item.needs & reasons.keys()):
            honoured = ", ".join(one.name for one in serving if need in one.supports)
            rows.append((code(item.say()), code(need), honoured, reasons[need]))
    return rows


def _declared() -> list[tuple[str, ...]]:
    return [(code(item.say()), need.say(), need.reason) for item in CATALOGUE for need in item.requires]


def _refused(verdict: Verdict) -> tuple[str, ...]:
    return code(verdict.first.name), code(verdict.second.name), verdict.reason


def _crowded(verdict: Verdict) -> bool:
    fillers = (verdict.first.component, verdict.second.component)
    return all(fillers) and _slot(fillers[0]) == _slot(fillers[1])


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
