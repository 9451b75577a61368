"""Runs a study: every unfinished trial, several in parallel, each in its own process.

Run the same command again to resume an interrupted study. The fork server imports the main module of the
program again, as multiprocessing always does: a script that calls `run_study` needs
`if __name__ == "__main__":`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from flagformer.lab.study.audits import audit_variant, run_audits
from flagformer.lab.study.capacity import refuse_insufficient_memory, refuse_missing_devices
from flagformer.lab.study.cluster import Cluster, import_ray
from flagformer.lab.study.costs import Cost, check_variants
from flagformer.lab.study.design import Run, Study
from flagformer.lab.study.directory import (
    RESULTS,
    read_setting,
    refuse_foreign,
    write_setting,
    write_study,
)
from flagformer.lab.study.environment import describe_environment
from flagformer.lab.study.executor import Executor
from flagformer.lab.study.file import load_study
from flagformer.lab.study.match import Matched, as_plain, match_budget
from flagformer.lab.study.planned import write_design
from flagformer.lab.study.pool import Pool
from flagformer.lab.study.provenance import provenance
from flagformer.lab.study.read_results import read_results
from flagformer.lab.study.resources import count_cores
from flagformer.lab.study.results import Results, as_json
from flagformer.lab.study.trials import run_trials
from flagformer.lab.train.files import only_process, os_error_context, write_atomic, write_json
from flagformer.lab.train.stopping import Stopping
from flagformer.lab.train.trial import run_trial

# torch._dynamo takes 0.8 s to import when the first model is built; the command's own modules, because every
# process imports the main module of the program
PRELOAD = (
    "torch._dynamo",
    "flagformer.catalogue",
    "flagformer.lab.train.trial",
    "flagformer.lab.study.run",
    "flagformer.lab.cli.train",
)
RETRIES = {"local": 0, "ray": 3}  # one machine would kill the trial again, a cluster has other nodes


@dataclass(frozen=True)
class Prepared:
    """A study that is ready to run: all variants can be built, and the data exists."""

    study: Study
    costs: dict[str, Cost]
    matched: dict[str, Matched] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def prepare(file: str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """Read a study file, check that every variant can be built, and match the variants according to `match`.

    Raises:
        StudyFileError: with all errors. For local execution these include missing devices, and trials that
            need more memory than this machine or its GPU has.
    """
    study, source = load_study(file, overrides)
    if study.executor == "ray":
        import_ray()
    refuse_missing_devices(study, source)
    study, costs, matched = match_budget(study, source, check_variants(study, source))
    refuse_insufficient_memory(study, source, costs)
    origins = provenance(study, source, {name: one.knob for name, one in matched.items()})
    return Prepared(study, costs, matched, origins)


def run_study(
    prepared: Prepared,
    out: str | Path | None = None,
    console: Console | None = None,
    function: Callable[[Any, Path], object] | None = None,
    examiner: Callable[[Any, Path], object] | None = None,
) -> Results:
    """Run the unfinished trials, then write results.json and report.html.

    Args:
        out: the run directory; default `runs/NAME`.
        console: for the progress; default: standard error.
        function: a module-level function that runs a trial; default `flagformer.lab.train.trial.run_trial`.
        examiner: a module-level function that audits a variant; default
            `flagformer.lab.study.audits.audit_variant`.

    Returns:
        The results, including failed trials.

    Raises:
        ValueError: the directory belongs to another study, or another process runs this study.
        OSError: the disk is full; finished trials are kept.
        Interrupted: after Ctrl-C or SIGTERM, once every worker has ended.
    """
    study = prepared.study
    directory = Path(out) if out is not None else Path("runs") / study.name
    refuse_foreign(directory, study)
    with os_error_context(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with Stopping().handling(), only_process(directory):
        refuse_foreign(directory, study)  # again, as another study may have claimed it before the lock
        setting = describe_environment(study, prepared.costs, read_setting(directory), directory)
        setting["matched"] = as_plain(prepared.matched)
        # first, so that a missing cluster is reported before minutes of audits
        executor = _executor(study, directory, setting, function or run_trial)
        with contextlib.ExitStack() as stack:
            stack.callback(executor.stop)
            write_study(directory, study, prepared.origins)
            write_design(directory, study)
            write_setting(directory, setting)
            _audit_variants(study, directory, setting, examiner or audit_variant)
            retries = RETRIES[study.executor] if study.retries is None else study.retries
            run_trials(study, directory, executor, retries, console or Console(stderr=True))
        return write_report(directory)


def write_report(directory: Path) -> Results:
    """Write results.json and all formats of the report from the finished trials."""
    from flagformer.lab.study.report import documents

    results = read_results(directory)
    write_json(directory / RESULTS, as_json(results))
    for name, text in documents(results).items():
        write_atomic(directory / name, text.encode())
    return results


def _audit_variants(
    study: Study, directory: Path, setting: dict[str, Any], examiner: Callable[[Any, Path], object]
) -> None:
    """Audit the variants on this machine, also if a cluster trains them."""
    at_once, threads = setting["trials_at_once"], setting["threads"]
    if study.executor == "ray":
        at_once = max(1, min(at_once, count_cores() // threads))
    run_audits(study, directory, at_once, threads, PRELOAD, examiner)


def _executor(
    study: Study, directory: Path, setting: dict[str, Any], function: Callable[[Any, Path], object]
) -> Executor[Run]:
    threads = setting["threads"]
    if study.executor == "ray":
        memory, data = setting["memory"]["trial"], setting["data"]
        return Cluster(function, directory, threads, memory, data, study.gpus, study.concurrency)
    return Pool(function, setting["trials_at_once"], threads, PRELOAD)
