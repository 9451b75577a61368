"""What a run directory says at this moment: the state of every trial and the table made from the finished
ones.

Everything is read from files, so table and report can be made again at any time, half-way too.
"""

from __future__ import annotations

import json
import os
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flagformer.study.design import Run, Setting, Study
from flagformer.study.directory import FAILURE, LOG, RESULT, read_setting, read_study, trial_directory
from flagformer.study.examine import read_examined
from flagformer.study.statistics import Difference, Estimate
from flagformer.train.files import read_json
from flagformer.train.result import read_result

TAIL = 4096  # bytes; a line of the log has some 150
BITS, ACCURACY = "bits per byte", "accuracy"
MEASURED = ("tokens_per_second", "speed_range", "decode_tokens_per_second", "peak_memory_bytes")


@dataclass(frozen=True)
class TrialState:
    """One trial: `state` is finished, diverged, failed, unfinished (it has steps) or waiting."""

    run: Run
    state: str
    steps: int
    detail: str = ""
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Candidate:
    """One setting that was tried for a variant: its loss on the validation split at the end of training."""

    setting: Setting
    validation: Estimate


@dataclass(frozen=True)
class AuditSummary:
    """What the audit says of a variant: property -> "passed", "failed" or "not applicable"; empty before it,
    and without it."""

    found: Mapping[str, str]
    failures: tuple[str, ...] = ()
    remark: str = ""

    @property
    def invalid(self) -> bool:
        """Whether the variant's loss says nothing."""
        return "failed" in self.found.values()


@dataclass(frozen=True)
class VariantResult:
    """One variant. Quality is exact and repeatable; speed is measured and is not.

    `tokens_per_second` is the median over seeds, `speed_range` the slowest and the fastest seed. `costs`
    holds the fields of `costs.Cost`. `loss` is in nats at the length `Results.loss_length`; `quality` maps a
    test length to bits per byte (text) or accuracy (tasks); `by_position` is the mean loss in equal parts of
    the longest row.
    Of a tuned variant everything is that of its best candidate, `tuned`; `at_edge` names the settings whose
    best value is the first or last that was tried.
    """

    variant: str
    flags: dict[str, Any]
    tuned: Setting
    at_edge: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    runs: int
    costs: Mapping[str, int]
    tokens_per_second: float | None
    speed_range: tuple[float, float] | None
    decode_tokens_per_second: float | None
    peak_memory_bytes: int | None
    state_bytes_per_token: int | None
    stamp: AuditSummary
    loss: Estimate
    validation: Estimate
    quality: dict[int, Estimate]
    by_position: tuple[float, ...]
    difference: Difference | None
    quality_difference: dict[int, Difference]

    @property
    def params(self) -> int | None:
        return self.costs.get("params")

    @property
    def flops_per_token(self) -> int | None:
        return self.costs.get("flops_per_token")


@dataclass(frozen=True)
class Results:
    """A study and all that is known about it."""

    directory: Path
    study: Study
    setting: dict[str, Any]
    trials: list[TrialState]
    rows: list[VariantResult]
    metric: str
    chance: float | None
    loss_length: int

    def count(self, *states: str) -> int:
        """How many trials are in one of the states."""
        return sum(trial.state in states for trial in self.trials)

    def row(self, variant: str) -> VariantResult:
        """The row of a variant."""
        return next(row for row in self.rows if row.variant == variant)

    def best_trials(self, variant: str) -> list[TrialState]:
        """The trials of a variant's best candidate."""
        tuned = self.row(variant).tuned
        return [trial for trial in self.trials if (trial.run.variant, trial.run.tuned) == (variant, tuned)]


def read_results(directory: Path) -> Results:
    """Reads a run directory; nothing is trained, nothing is written.

    Raises:
        ValueError: it holds no study, or a file in it is damaged (named, with what to do).
    """
    from flagformer.study.rows import make_rows

    study = read_study(directory)
    setting = read_setting(directory)
    trials = [read_trial(directory, run) for run in study.runs]
    lengths = study.runs[0].trial.lengths
    loss_length = study.data.seq_len if study.data.seq_len in lengths else lengths[0]
    return Results(
        directory=directory,
        study=study,
        setting=setting,
        trials=trials,
        rows=make_rows(study, setting, read_examined(study, directory), trials, loss_length),
        metric=BITS if study.data.is_bytes else ACCURACY,
        chance=study.data.chance,
        loss_length=loss_length,
    )


def read_trial(directory: Path, run: Run) -> TrialState:
    """The state of one trial from the files it has written."""
    place = trial_directory(directory, run.trial.id)
    if (place / RESULT).exists():
        result = read_result(place / RESULT)
        return TrialState(run, result["status"], result["steps"], "; ".join(result.get("notes", ())), result)
    steps = int(last_line(place).get("step", 0))
    if (place / FAILURE).exists():
        return TrialState(run, "failed", steps, str(read_json(place / FAILURE).get("message", "")))
    return TrialState(run, "unfinished" if steps else "waiting", steps)


def last_line(place: Path) -> dict[str, Any]:
    """The newest whole line of a trial's log, whatever its length; empty before the first."""
    try:
        with open(place / LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
            lines = log.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    try:
        line = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    whole = isinstance(line, dict) and isinstance(line.get("step"), int)
    return line if whole else {}


def median(values: list[float]) -> float | None:
    """The middle one, or the mean of the two in the middle."""
    return statistics.median(values) if values else None


def as_json(results: Results) -> dict[str, Any]:
    """results.json: the table as data. `measured` columns differ from run to run, all others do not on one
    machine."""
    return {
        "schema": 2,
        "study": results.study.resolved(),
        "baseline": results.study.baseline,
        "metric": results.metric,
        "chance": results.chance,
        "loss_length": results.loss_length,
        "rows": [_row_json(row) for row in results.rows],
        "trials": [
            {
                "variant": t.run.variant,
                "seed": t.run.seed,
                "tuned": t.run.tuned,
                "id": t.run.trial.id,
                "state": t.state,
                "steps": t.steps,
            }
            for t in results.trials
        ],
        "measured": {
            **{name: {row.variant: getattr(row, name) for row in results.rows} for name in MEASURED},
            "setting": results.setting,
        },
    }


def _row_json(row: VariantResult) -> dict[str, Any]:
    plain = asdict(row)
    return {key: value for key, value in plain.items() if key not in MEASURED}
