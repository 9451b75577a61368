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

from flagformer.study.directory import FAILURE, LOG, RESULT, read_setting, read_study, trial_directory
from flagformer.study.file import Run, Study
from flagformer.study.statistics import Difference, Estimate, mean_interval, paired_differences
from flagformer.train.files import read_json

TAIL = 4096  # bytes; a line of the log has some 150
BITS, ACCURACY = "bits per byte", "accuracy"


@dataclass(frozen=True)
class TrialState:
    """One trial: `state` is finished, diverged, failed, unfinished (it has steps) or waiting."""

    run: Run
    state: str
    steps: int
    detail: str = ""
    result: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Row:
    """One variant. Quality is exact and repeatable; speed is measured and is not.

    `tokens_per_second` is the median over seeds, `speed_range` the slowest and the fastest seed.
    `loss` is in nats at the length `Results.loss_length`; `quality` maps a test length to bits per byte
    (bytes) or accuracy (tasks).
    """

    variant: str
    flags: dict[str, Any]
    params: int | None
    flops_per_token: int | None
    tokens_per_second: float | None
    speed_range: tuple[float, float] | None
    loss: Estimate
    quality: dict[int, Estimate]
    difference: Difference | None
    quality_difference: dict[int, Difference]


@dataclass(frozen=True)
class Results:
    """A study and all that is known about it."""

    directory: Path
    study: Study
    setting: dict[str, Any]
    trials: list[TrialState]
    rows: list[Row]
    metric: str
    chance: float | None
    loss_length: int

    def count(self, *states: str) -> int:
        """How many trials are in one of the states."""
        return sum(trial.state in states for trial in self.trials)

    def row(self, variant: str) -> Row:
        """The row of a variant."""
        return next(row for row in self.rows if row.variant == variant)


def read_results(directory: Path) -> Results:
    """Reads a run directory; nothing is trained, nothing is written.

    Raises:
        ValueError: it holds no study, or a file in it is damaged (named, with what to do).
    """
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
        rows=_rows(study, setting, trials, loss_length),
        metric=BITS if study.data.is_bytes else ACCURACY,
        chance=study.data.chance,
        loss_length=loss_length,
    )


def read_trial(directory: Path, run: Run) -> TrialState:
    """The state of one trial from the files it has written."""
    place = trial_directory(directory, run.trial.id)
    if (place / RESULT).exists():
        result = read_json(place / RESULT)
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
    return line if isinstance(line, dict) else {}


def as_json(results: Results) -> dict[str, Any]:
    """results.json: the table as data. `measured` columns differ from run to run, all others do not on one
    machine."""
    return {
        "schema": 1,
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
                "id": t.run.trial.id,
                "state": t.state,
                "steps": t.steps,
            }
            for t in results.trials
        ],
        "measured": {
            "tokens_per_second": {row.variant: row.tokens_per_second for row in results.rows},
            "speed_range": {row.variant: row.speed_range for row in results.rows},
            "setting": results.setting,
        },
    }


def _row_json(row: Row) -> dict[str, Any]:
    plain = asdict(row)
    return {key: value for key, value in plain.items() if key not in ("tokens_per_second", "speed_range")}


def _rows(study: Study, setting: Mapping[str, Any], trials: list[TrialState], loss_length: int) -> list[Row]:
    lengths = study.runs[0].trial.lengths
    key = "bits_per_byte" if study.data.is_bytes else "accuracy"
    losses = _by_variant(study, trials, loss_length, "nats")
    quality = {length: _by_variant(study, trials, length, key) for length in lengths}
    difference = paired_differences(losses, study.baseline)
    quality_difference = {
        length: paired_differences(values, study.baseline, lower_is_better=study.data.is_bytes)
        for length, values in quality.items()
    }
    costs = setting.get("variants", {})
    speeds = {name: _speeds(name, trials) for name in study.compare}
    return [
        Row(
            variant=name,
            flags=flags,
            params=costs.get(name, {}).get("params"),
            flops_per_token=costs.get(name, {}).get("flops_per_token"),
            tokens_per_second=statistics.median(speeds[name]) if speeds[name] else None,
            speed_range=(min(speeds[name]), max(speeds[name])) if speeds[name] else None,
            loss=mean_interval(list(losses[name].values())),
            quality={length: mean_interval(list(quality[length][name].values())) for length in lengths},
            difference=difference.get(name),
            quality_difference={n: d[name] for n, d in quality_difference.items() if name in d},
        )
        for name, flags in study.compare.items()
    ]


def _by_variant(study: Study, trials: list[TrialState], length: int, key: str) -> dict[str, dict[int, float]]:
    """variant -> seed -> value, of the finished trials, in the order of the seeds."""
    values: dict[str, dict[int, float]] = {name: {} for name in study.compare}
    for trial in trials:
        if trial.state == "finished" and trial.result is not None:
            for entry in trial.result["evaluation"]:
                if entry["seq_len"] == length:
                    values[trial.run.variant][trial.run.seed] = entry[key]
    return values


def _speeds(variant: str, trials: list[TrialState]) -> list[float]:
    """Training tokens a second of every finished seed."""
    costs = [trial.result["cost"] for trial in trials if trial.run.variant == variant and trial.result]
    return [cost["tokens_per_second"] for cost in costs if cost["tokens_per_second"]]
