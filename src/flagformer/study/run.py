"""Runs a study: every trial that is not finished yet, several at once, each in its own process.

The same command goes on where the last one stopped, however it stopped. The fork server imports the main
module of the program again, as multiprocessing always does: a script that calls `run_study` needs `if
__name__ == "__main__":`.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from flagformer.study.costs import Cost, check_variants
from flagformer.study.directory import (
    FAILURE,
    RESULTS,
    read_setting,
    refuse_foreign,
    trial_directory,
    write_setting,
    write_study,
)
from flagformer.study.examine import examine, examine_variants
from flagformer.study.file import Run, Study, load_study
from flagformer.study.match import Matched, as_plain, match_budget
from flagformer.study.pool import Ended, Pool
from flagformer.study.progress import Progress
from flagformer.study.provenance import provenance
from flagformer.study.results import Results, as_json, read_results, read_trial
from flagformer.study.setting import describe_setting
from flagformer.study.worker import Failure
from flagformer.train.files import naming, only_process, write_atomic, write_json

# torch imports its _dynamo (0.8 s) when the first model is built; the command's own modules, because every
# process imports the program's main module again
PRELOAD = ("torch._dynamo", "flagformer.train.trial", "flagformer.study.run", "flagformer.cli.train")
POLL = 0.2  # seconds
DONE = ("finished", "diverged")


class Interrupted(KeyboardInterrupt):
    """The study was stopped from outside; what was finished is kept."""


@dataclass(frozen=True)
class Prepared:
    """A study that can be run: every variant builds, the data is there."""

    study: Study
    costs: dict[str, Cost]
    matched: dict[str, Matched] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)


def prepare(file: str | Path, overrides: Sequence[str] = ()) -> Prepared:
    """Reads a study file, builds every variant without memory and makes them equal as `match` says; raises
    StudyFileError with every mistake."""
    study, source = load_study(file, overrides)
    study, costs, matched = match_budget(study, source, check_variants(study, source))
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
    with naming(directory):
        directory.mkdir(parents=True, exist_ok=True)
    with only_process(directory):
        refuse_foreign(directory, study)  # again: it may have become another's before the lock was ours
        setting = describe_setting(study, prepared.costs, read_setting(directory), directory)
        setting["matched"] = as_plain(prepared.matched)
        write_study(directory, study, prepared.origins)
        write_setting(directory, setting)
        pool: Pool[Run] = Pool(function or _run_trial, setting["trials_at_once"], setting["threads"], PRELOAD)
        at_once, threads = setting["trials_at_once"], setting["threads"]
        examine_variants(study, directory, at_once, threads, PRELOAD, examiner or examine)
        _run_all(study, directory, pool, console or Console(stderr=True))
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


def _run_all(study: Study, directory: Path, pool: Pool[Run], console: Console) -> None:
    todo = [run for run in study.runs if read_trial(directory, run).state not in DONE]
    total = len(study.runs)
    with _stop_signals(), Progress(study, directory, total - len(todo), console) as progress:
        try:
            while todo or pool.running:
                while todo and pool.has_room:
                    run = todo.pop(0)
                    place = trial_directory(directory, run.trial.id)
                    (place / FAILURE).unlink(missing_ok=True)
                    progress.started(run)
                    pool.start(run, run.trial, place)
                for ended in pool.ended(POLL):
                    _close(ended, directory, progress)
                progress.tick()
        except KeyboardInterrupt:
            pool.stop()
            kept = sum(read_trial(directory, run).state in DONE for run in study.runs)
            raise Interrupted(
                f"stopped: {kept} of {total} trials are finished and kept in {directory}, the others go on "
                "from their checkpoints; "
                "run the same command again to go on"
            ) from None
        finally:
            pool.stop()


def _close(ended: Ended[Run], directory: Path, progress: Progress) -> None:
    """Books a trial whose process is gone; a full disk ends the study, as every other trial would meet it
    too."""
    run, failure = ended.job, ended.failure
    state = read_trial(directory, run)
    if failure is None and state.state not in DONE:
        failure = Failure("error", "the trial function returned without a result")
    if failure is None:
        progress.ended(run, None, _outcome(state.result or {}))
        return
    place = trial_directory(directory, run.trial.id)
    with contextlib.suppress(OSError):
        write_json(place / FAILURE, {"kind": failure.kind, "message": failure.message})
    progress.ended(run, failure, f"failed: {failure.message}")
    if failure.kind == "disk":
        text = (
            "the study is stopped, finished trials are kept; free some space and run the same command again"
        )
        raise OSError(errno.ENOSPC, f"{failure.message}; {text}")


def _outcome(result: Mapping[str, Any]) -> str:
    if result.get("status") == "diverged":
        return f"diverged at step {result.get('steps')}: the loss is not finite"
    measured = result["evaluation"][0]
    return f"finished, {measured['nats']:.4f} nats at length {measured['seq_len']}"


@contextlib.contextmanager
def _stop_signals() -> Iterator[None]:
    """SIGTERM stops a study as cleanly as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
