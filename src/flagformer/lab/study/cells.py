"""The cells of a factorial study, and the questions that it answers: contrasts of cells.

A cell is one combination of the values of `factors`; every variant is trained in every cell.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

TRAIN = "train."  # prefix of training settings among the keys of a variant, a grid or a factor
Setting = dict[str, Any]  # `lr_scale: 2` (a flag) and `train.lr: 1e-3` (a training setting)


@dataclass(frozen=True)
class Contrast:
    """A weighted sum over cells. `kind` is "cell", "main" (the mean over all cells) or "interaction" (how an
    effect changes with one factor)."""

    kind: str
    name: str
    weights: tuple[float, ...]


def points(factors: Mapping[str, Sequence[Any]]) -> list[Setting]:
    """Every combination of the values; one empty setting without factors."""
    return [dict(zip(factors, values)) for values in product(*factors.values())]


def point_name(variant: str, point: Setting) -> str:
    """`rotary depth=2`: a variant at a point of the grid or in a cell."""
    words = [f"{key.removeprefix(TRAIN)}={_word(value)}" for key, value in point.items()]
    return " ".join([variant, *words] if variant else words)


def cell_of(variant: str, cells: Iterable[str]) -> str:
    """The cell whose name ends that of the variant; empty if there is none."""
    return next((cell for cell in cells if cell and variant.endswith(f" {cell}")), "")


def contrasts(factors: Mapping[str, Sequence[Any]]) -> list[Contrast]:
    """Each cell, the mean over all cells, and the interactions of a variant with each factor: the second
    value less the first, or each value less the mean of the others where there are more than two."""
    where = points(factors)
    if len(where) == 1:
        return [Contrast("cell", "", (1.0,))]
    size = len(where)
    found = [
        Contrast("cell", point_name("", one), tuple(float(one == other) for other in where)) for one in where
    ]
    found.append(Contrast("main", f"mean of {size} cells", (1 / size,) * size))
    for key, values in factors.items():
        name = key.removeprefix(TRAIN)
        for value in values[1:] if len(values) == 2 else values if len(values) > 2 else ():
            others = [other for other in values if other != value]
            words = " and ".join(_word(other) for other in others)
            here, there = size / len(values), size / len(values) * len(others)
            weights = tuple(1 / here if one[key] == value else -1 / there for one in where)
            found.append(Contrast("interaction", f"{name}={_word(value)} against {words}", weights))
    return found


def _word(value: object) -> str:
    text = str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)
    return re.sub(r"[^A-Za-z0-9_.+-]+", "-", text).strip("-")
