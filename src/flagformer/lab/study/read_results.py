"""Read the current results of a run directory from its files, also during a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from flagformer.lab.study.audits import read_audits
from flagformer.lab.study.design import Run
from flagformer.lab.study.directory import FAILURE, LOG, RESULT, read_setting, read_study, trial_directory
from flagformer.lab.study.planned import read_design
from flagformer.lab.study.results import Results, TrialState
from flagformer.lab.study.rows import make_rows
from flagformer.lab.train.files import read_json
from flagformer.lab.train.result import read_result

TAIL = 4096  # bytes; a line of the log has about 150


def read_results(directory: Path) -> Results:
    """Read the results in a run directory, without training or writing.

    Raises:
        ValueError: it contains no study, or a damaged file.
    """
    study = read_study(directory)
    setting = read_setting(directory)
    trials = [read_trial(directory, run) for run in study.runs]
    objective, loss_length = study.runs[0].trial.trained_by, study.loss_length
    rows, effects = make_rows(study, setting, read_audits(study, directory), trials, loss_length)
    return Results(
        directory=directory,
        study=study,
        setting=setting,
        trials=trials,
        rows=rows,
        effects=effects,
        design=read_design(directory),
        metric=objective.quality_of(study.data)[0],
        chance=objective.chance(study.data),
        loss_length=loss_length,
    )


def read_trial(directory: Path, run: Run) -> TrialState:
    """The state of one trial, from its files."""
    folder = trial_directory(directory, run.trial.id)
    if (folder / RESULT).exists():
        result = read_result(folder / RESULT)
        return TrialState(run, result["status"], result["steps"], "; ".join(result.get("notes", ())), result)
    steps = int(last_line(folder).get("step", 0))
    if (folder / FAILURE).exists():
        return TrialState(run, "failed", steps, str(read_json(folder / FAILURE).get("message", "")))
    return TrialState(run, "unfinished" if steps else "waiting", steps)


def last_line(folder: Path) -> dict[str, Any]:
    """The last complete line of a trial's log; empty before the first."""
    try:
        with open(folder / LOG, "rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL))
            lines = log.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return {}
    try:
        line = json.loads(lines[-1]) if lines else {}
    except ValueError:
        return {}
    valid = isinstance(line, dict) and isinstance(line.get("step"), int)
    return line if valid else {}
