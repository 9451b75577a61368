"""The effects of variants in a factorial study: in each cell, on average, and their interactions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from flagformer.lab.study.cells import Contrast
from flagformer.lab.study.design import Study
from flagformer.lab.study.statistics import Difference, paired_differences

Values = Mapping[str, Mapping[int, float]]  # variant -> seed -> value


@dataclass(frozen=True)
class Effect:
    """The difference of a variant from the baseline, in a contrast of cells.

    The verdict of an interaction is "changes" where the interval excludes zero; "equivalent" where the effect
    changes by less than the margin.
    """

    variant: str
    kind: str
    name: str
    difference: Difference


def find_effects(study: Study, losses: Values, refused: Mapping[str, str]) -> list[Effect]:
    """All effects of all variants, one family: every contrast has an equal share of the level.

    Args:
        losses: of every variant in every cell, by its full name.
        refused: full name -> the verdict of variants that get none from their losses.
    """
    found = []
    for contrast in study.contrasts:
        summed = {name: _summed(study, name, contrast, losses) for name in study.contenders}
        apart = paired_differences(summed, study.reference, margin=study.margin, level=study.level)
        for name, one in apart.items():
            verdict = _refusal(study, name, contrast, refused) or one.verdict
            if contrast.kind == "interaction" and verdict in ("better", "worse"):
                verdict = "changes"
            found.append(Effect(name, contrast.kind, contrast.name, replace(one, verdict=verdict)))
    return found


def _summed(study: Study, name: str, contrast: Contrast, losses: Values) -> dict[int, float]:
    """The weighted sum over cells for the seeds that all of them have."""
    cells = [(losses[study.full_name(name, cell)], weight) for cell, weight in _used(study, contrast)]
    shared = set.intersection(*(set(values) for values, _ in cells))
    return {seed: sum(weight * values[seed] for values, weight in cells) for seed in sorted(shared)}


def _refusal(study: Study, name: str, contrast: Contrast, refused: Mapping[str, str]) -> str:
    cells = [cell for cell, _ in _used(study, contrast)]
    both = [study.full_name(one, cell) for cell in cells for one in (name, study.reference)]
    words = {refused[one] for one in both if one in refused}
    return "invalid" if "invalid" in words else next(iter(words), "")


def _used(study: Study, contrast: Contrast) -> list[tuple[str, float]]:
    return [(cell, weight) for cell, weight in zip(study.cells, contrast.weights) if weight]
