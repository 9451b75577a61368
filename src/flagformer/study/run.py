"""Runs a study: every trial that is not finished yet, several at once, each in its own process.

The same command goes on where the last one stopped, however it stopped. The fork server imports the main
module of the program again, as multiprocessing always does: a script that calls `run_study` needs `if
__name__ == "__main__":`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from flagformer.study.cluster import Cluster, import_ray
from flagformer.study.costs import Cost, check_variants
from flagformer.study.design import Run, Study
from flagformer.study.directory import (
    RESULTS,
    read_setting,
    refuse_foreign,
    write_setting,
    write_study,
)
from flagformer.study.examine import examine, examine_variants
from flagformer.study.executor import Executor
from flagformer.study.file import load_study
from flagformer.study.match import Matched, as_plain, match_budget
from flagformer.study.pool import Pool
from flagformer.study.provenance import provenance
from flagformer.study.resources import count_cores
from flagformer.study.results import Results, as_json, read_results
from flagformer.study.room import refuse_missing_devices, refuse_without_room
from flagformer.study.setting import describe_setting
from flagformer.study.trials import run_trials
from flagformer.train.files import only_process, os_error_context, write_atomic, write_json
from flagformer.train.stopping import Stopping

# torch imports its _dynamo (0.8 s) when the first model is built; the command's own modules, because every
# process imports the program's main module again
PRELOAD = (
    "torch._dynamo",
    "flagformer.catalogue",
    "flagformer.train.trial",
    "flagformer.study.run",
    "flagformer.cli.train",
)
RETRIES = {"local": 0, "ray": 3}  # a machine that kills a trial will do so again; a cluster has others


@dataclass(frozen=True)
class Prepared:
    """A study that can be run: every variant builds, the data is there."""

    study: Study
    costs: dict[str, Cost]
    matched: dict[str, Matched] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def prepare(file: str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """Reads a study file, builds every variant without memory and makes them equal as `match` says; raises
    StudyFileError with every mistake.

    Refused too, unless a Ray cluster runs it: a device that is not here, and trials that need more memory
    than this machine or its GPU has.
    """
    study, source = load_study(file, overrides)
    if study.executor == "ray":
        import_ray()
    refuse_missing_devices(study, source)
    study, costs, matched = match_budget(study, source, check_variants(study, source))
    refuse_without_room(study, source, costs)
    origins = provenance(study, source, {name: one.knob for name, one in matched.items()})
    return Prepared(study, costs, matched, origins)


def run_study(
    prepared: Prepared,
    out: str | Path | None = None,
    console: Console | None = None,
    function: Callable[[Any, Path], object] | None = None,
    examiner: Callable[[Any, Path], object] | None = None,
) -> Results:
    """Runs what is not finished, then writes results.json and report.html.

    Args:
        out: the run directory; `runs/NAME` by default.
        console: where progress goes; standard error by default.
        function: what runs a trial, `flagformer.train.trial.run_trial` by default; a module-level function.
        examiner: what examines a variant, `flagformer.study.examine.examine` by default; the same.

    Returns:
        the results; failed trials are among them as such.

    Raises:
        ValueError: the directory belongs to another study, or another process runs this one.
        OSError: the disk is full; finished trials are kept.
        Interrupted: after Ctrl-C or SIGTERM, once every worker has ended.
    """
    study = prepared.study
    directory = Path(out) if out is not None else Path("runs") / study.name
    refuse_foreign(directory, study)
    with os_error_context(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with Stopping().heard(), only_process(directory):
        refuse_foreign(directory, study)  # again: it may have become another's before the lock was ours
        setting = describe_setting(study, prepared.costs, read_setting(directory), directory)
        setting["matched"] = as_plain(prepared.matched)
        # first of all: a cluster that is not there is told of before minutes of audits
        executor = _executor(study, directory, setting, function or _run_trial)
        with contextlib.ExitStack() as held:
            held.callback(executor.stop)
            write_study(directory, study, prepared.origins)
            write_setting(directory, setting)
            _examine(study, directory, setting, examiner or examine)
            retries = RETRIES[study.executor] if study.retries is None else study.retries
            run_trials(study, directory, executor, retries, console or Console(stderr=True))
        return write_report(directory)


def write_report(directory: Path) -> Results:
    """Writes results.json and the report in all its forms from what is finished by now."""
    from flagformer.study.report import documents

    results = read_results(directory)
    write_json(directory / RESULTS, as_json(results))
    for name, text in documents(results).items():
        write_atomic(directory / name, text.encode())
    return results


def _run_trial(trial: Any, directory: Path) -> object:
    from flagformer.train.trial import run_trial

    return run_trial(trial, directory)


def _examine(
    study: Study, directory: Path, setting: dict[str, Any], examiner: Callable[[Any, Path], object]
) -> None:
    """On this machine, also where a cluster trains."""
    at_once, threads = setting["trials_at_once"], setting["threads"]
    if study.executor == "ray":
        at_once = max(1, min(at_once, count_cores() // threads))
    examine_variants(study, directory, at_once, threads, PRELOAD, examiner)


def _executor(
    study: Study, directory: Path, setting: dict[str, Any], function: Callable[[Any, Path], object]
) -> Executor[Run]:
    threads = setting["threads"]
    if study.executor == "ray":
        memory, data = setting["memory"]["trial"], setting["data"]
        return Cluster(function, directory, threads, memory, data, study.gpus, study.concurrency)
    return Pool(function, setting["trials_at_once"], threads, PRELOAD)
