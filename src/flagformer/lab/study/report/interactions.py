"""The effects of a factorial study in the report: table, sentence and interaction plot."""

from __future__ import annotations

import csv
import io
from itertools import cycle
from typing import Any

from flagformer.lab.study.effects import Effect
from flagformer.lab.study.formatting import difference, listed
from flagformer.lab.study.report import figures
from flagformer.lab.study.results import Results

HEADS = ("variant", "effect", "difference", "verdict")
NOTE = (
    "Differences in held-out loss from the baseline of the same cell: in each cell, the mean over cells, and "
    "interactions, the change of the difference with one factor. All of them are one family: each question "
    "has an equal share of the 5 %, and its intervals hold for all variants together. An interaction needs "
    "larger effects or more seeds than a difference in one cell: `not resolved` does not say that there is "
    "none."
)


def effect_rows(results: Results) -> list[list[str]]:
    """Variant, effect, difference with interval, verdict."""
    return [
        [one.variant, effect_name(one), difference(one.difference), one.difference.verdict]
        for one in sorted(results.effects, key=lambda one: results.study.contenders.index(one.variant))
    ]


def effect_name(effect: Effect) -> str:
    """`at depth=2`, `mean of 2 cells`, `interaction: depth=4 against 2`."""
    prefix = {"cell": "at ", "main": "", "interaction": "interaction: "}[effect.kind]
    return prefix + effect.name


def markdown_effects(results: Results) -> str:
    """A pipe table."""
    lines = ["| " + " | ".join(HEADS) + " |", "|---|---|---:|---|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in effect_rows(results)])


def csv_effects(results: Results) -> str:
    """Every effect in full precision."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["variant", "kind", "effect", "difference", "low", "high", "verdict"])
    for one in results.effects:
        estimate = one.difference.estimate
        numbers = [estimate.mean, estimate.low, estimate.high]
        writer.writerow([one.variant, one.kind, one.name, *numbers, one.difference.verdict])
    return buffer.getvalue()


def effects_finding(results: Results) -> str:
    """The mean effects, and the interactions that are resolved."""
    if not results.effects:
        return ""
    mean = [one for one in results.effects if one.kind == "main" and one.difference.estimate.low is not None]
    if not mean:
        return "Effects need at least two seeds that all cells have finished."
    changing = [
        f"{one.variant} ({one.name}: {difference(one.difference)})"
        for one in results.effects
        if one.kind == "interaction" and one.difference.verdict == "changes"
    ]
    groups: dict[str, list[str]] = {}
    for one in mean:
        groups.setdefault(one.difference.verdict, []).append(one.variant)
    parts = [f"{listed(names)} {verdict}" for verdict, names in groups.items()]
    factors = listed([key.removeprefix("train.") for key in results.study.factors])
    change = (
        f"the effect changes with the factor for {listed(changing)}"
        if changing
        else f"no change of an effect with {factors} is resolved"
    )
    return f"On average over {len(results.study.cells)} cells: {'; '.join(parts)}. Interactions: {change}."


def interaction_plot(results: Results) -> str:
    """The difference of every variant from the baseline of the cell, against the cells."""
    study = results.study
    shown = study.contenders[1:]

    def draw(axes: Any) -> None:
        looks = zip(shown, cycle(figures.COLORS), cycle(figures.MARKERS))
        for index, (name, color, marker) in enumerate(looks):
            own = [one for one in results.effects if (one.kind, one.variant) == ("cell", name)]
            found = [one.difference.estimate for one in own]
            shift = 0.08 * (index - (len(shown) - 1) / 2)
            points = [
                (x + shift, e.mean, e.mean - e.low, e.high - e.mean)
                for x, e in enumerate(found)
                if e.mean is not None and e.low is not None and e.high is not None
            ]
            if points:
                x, mean, down, up = zip(*points)
                axes.errorbar(x, mean, yerr=[down, up], color=color, marker=marker, capsize=3, label=name)
        axes.axhline(0.0, color=figures.INK, linewidth=0.8, linestyle=":")
        axes.set_xticks(range(len(study.cells)), study.cells)
        minus = f"held-out loss minus that of {study.reference}"
        axes.set_ylabel(f"{minus} ({results.unit}; below zero is better)")

    return figures.svg("interactions", draw, f"Difference from {study.reference} in every cell")
