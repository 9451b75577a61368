"""The design of a study and its power, written down before the first trial.

`design.json` holds the hypothesis, the margin, the seeds, the tests and the power. It is written once: the
report of a study that changed afterwards names the changes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flagformer.lab.study.design import Study
from flagformer.lab.study.directory import DESIGN, LOG, RESULTS
from flagformer.lab.study.formatting import listed, plural
from flagformer.lab.study.power import Noise, difference_found, noise_of
from flagformer.lab.study.statistics import mean_interval
from flagformer.lab.study.verdicts import LEVEL
from flagformer.lab.train.files import read_record, write_json

PROBABILITIES = (0.8, 0.9)
_TEXT = (str, type(None))
_DESIGN: dict[str, Any] = {
    "written": str, "hypothesis": _TEXT, "variants": [str], "seeds": [int], "tests": [str], "power": [str],
    "margin": (int, float, type(None)),
}  # fmt: skip
MOST_EARLIER = 100  # run directories that are read
SIGMA = "\N{GREEK SMALL LETTER SIGMA}"


@dataclass(frozen=True)
class Pilot:
    """The noise of runs before a study: `origin` is a run directory or the study file; `steps` those of its
    runs, None if unknown."""

    noise: Noise
    origin: str
    steps: int | None = None


def pilot_of(study: Study, directory: Path) -> Pilot | None:
    """The noise from `sigma` in the file, else from the results with the same data and test length in this
    run directory or next to it, those with the nearest number of steps; None if there are none."""
    if study.sigma is not None:
        return Pilot(Noise(study.sigma), "the study file")
    earlier = [directory, *(path for path in _neighbours(directory) if path != directory)]
    found = [pilot for path in earlier if (pilot := _pilot(study, path)) is not None]
    return min(found, key=lambda one: abs((one.steps or 0) - study.train.steps), default=None)


def power_lines(study: Study, pilot: Pilot | None) -> list[str]:
    """The differences that the study finds with probability 0.8 and 0.9, in nats, or in standard deviations
    where these are not known. Those of several cells assume that cells are independent."""
    variants, seeds = len(study.contenders) - 1, len(study.seeds)
    if not variants:
        return []
    if seeds < 2:
        return ["Power: none, because a verdict needs at least 2 seeds."]
    noise = Noise(1.0) if pilot is None else pilot.noise
    found = [difference_found(noise, variants, seeds, power, study.level) or 0.0 for power in PROBABILITIES]
    unit = SIGMA if pilot is None else "nats"
    sizes = [
        f"{name} of {' or '.join(f'{scale * size:.2g}' for size in found)} {unit}"
        for name, scale in _kinds(study).items()
    ]
    known = "" if pilot is None else f" and {SIGMA} = {pilot.noise.sigma:.2g} ({pilot.origin})"
    chance = " or ".join(f"{power:g}" for power in PROBABILITIES)
    lines = [f"Power: {plural(seeds, 'seed')}{known} find {listed(sizes)} with probability {chance}."]
    if pilot is None:
        lines.append(
            f"{SIGMA} is the standard deviation of a run's loss over seeds. No earlier run next to this one "
            "has this data; `sigma: 0.015` sets it."
        )
    elif pilot.steps not in (None, study.train.steps):
        lines.append(
            f"{pilot.origin} has {pilot.steps:,} steps, this study {study.train.steps:,}: {SIGMA} changes "
            "with the steps, and shorter runs understate it."
        )
    return lines


def _kinds(study: Study) -> dict[str, float]:
    """The questions of the study, and the standard deviation of each contrast for one of 1 in each cell."""
    names = {"cell": "an effect in one cell", "main": "a mean effect", "interaction": "an interaction"}
    if not study.factors:
        return {"a difference": 1.0}
    return {names[one.kind]: math.hypot(*one.weights) for one in reversed(study.contrasts)}


def stated_tests(study: Study) -> list[str]:
    """The tests of the study, as the design states them."""
    variants, share = len(study.contenders) - 1, f"{LEVEL:.0%}"
    questions = f", {len(study.contrasts)} questions of {listed(study.cells)}" if study.factors else ""
    lines = [
        f"held-out loss at {study.loss_length} tokens, {plural(variants, 'difference')} from "
        f"{study.reference}{questions}: one family at {share}, step-down"
    ]
    if study.margin is not None:
        within = f"{study.margin:g} {study.runs[0].trial.trained_by.unit}"
        lines.append(f"equivalence within {within}, the same differences: one family at {share}")
    lengths = study.runs[0].trial.lengths
    if len(lengths) > 1:
        tested = listed([str(length) for length in lengths])
        lines.append(f"quality at {tested} tokens, all differences: one family at {share}")
    return lines


def write_design(directory: Path, study: Study) -> None:
    """Write design.json unless it exists, or a trial has begun."""
    path = directory / DESIGN
    if path.exists() or any((directory / "trials").glob(f"*/{LOG}")):
        return
    pilot = pilot_of(study, directory)
    write_json(path, {
        "schema": 1,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "hypothesis": study.hypothesis,
        "variants": list(study.compare),
        "factors": study.factors,
        "seeds": list(study.seeds),
        "margin": study.margin,
        "level": LEVEL,
        "tests": stated_tests(study),
        "sigma": None if pilot is None else pilot.noise.sigma,
        "sigma_from": None if pilot is None else pilot.origin,
        "power": power_lines(study, pilot),
    })  # fmt: skip


def read_design(directory: Path) -> dict[str, Any]:
    """The contents of design.json; empty for the directories of earlier versions."""
    path = directory / DESIGN
    return read_record(path, _DESIGN) if path.exists() else {}


def design_lines(design: Mapping[str, Any]) -> list[str]:
    """The design in sentences, for the report."""
    lines = [f"Hypothesis: {design['hypothesis']}"] if design["hypothesis"] else []
    lines.append(
        f"Written {design['written']}, before the first trial: {plural(len(design['seeds']), 'seed')}, "
        f"{plural(len(design['variants']), 'variant')}, margin {design['margin'] or 'none'}."
    )
    return [*lines, *(f"Test: {line}." for line in design["tests"]), *design["power"]]


def change_lines(study: Study, design: Mapping[str, Any]) -> list[str]:
    """What the study changed after its design was written, and what this means for the verdicts."""
    if not design:
        return []
    lines = []
    planned, seeds = list(design["seeds"]), list(study.seeds)
    if planned != seeds:
        lines.append(
            f"{plural(len(planned), 'seed')} {'was' if len(planned) == 1 else 'were'} planned and "
            f"{len(seeds)} {'is' if len(seeds) == 1 else 'are'} used"
        )
    added = [name for name in study.compare if name not in design["variants"]]
    removed = [name for name in design["variants"] if name not in study.compare]
    lines += [f"{listed(added)} added"] if added else []
    lines += [f"{listed(removed)} removed"] if removed else []
    if design["margin"] != study.margin:
        lines.append(f"the margin was {design['margin'] or 'none'} and is {study.margin or 'none'}")
    return lines


def change_line(study: Study, design: Mapping[str, Any]) -> str:
    """The changes in one sentence; empty if there are none."""
    changes = change_lines(study, design)
    if not changes:
        return ""
    return (
        f"Changed since the design ({DESIGN}) was written: {'; '.join(changes)}. Verdicts after such a "
        "change are exploratory: their error may exceed 5 %."
    )


def _neighbours(directory: Path) -> list[Path]:
    """Run directories with results next to this one."""
    try:
        found = sorted(path for path in directory.parent.iterdir() if (path / RESULTS).is_file())
    except OSError:
        return []
    return found[:MOST_EARLIER]


def _pilot(study: Study, path: Path) -> Pilot | None:
    """The noise of finished results; None for those of other data or of a version that lacks values."""
    try:
        plain = json.loads((path / RESULTS).read_text(encoding="utf-8"))
        theirs, mine = plain["study"], study.resolved()
        if any(theirs.get(key) != mine.get(key) for key in ("data", "objective")):
            return None
        if plain["loss_length"] != study.loss_length:
            return None
        rows = plain["rows"]
        losses = [mean_interval(row["loss"]["values"]) for row in rows]
        apart = [row["difference"]["estimate"]["values"] for row in rows if row["difference"]]
        noise = noise_of(losses, [mean_interval(values) for values in apart])
        return None if noise is None else Pilot(noise, str(path), int(theirs["train"]["steps"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
