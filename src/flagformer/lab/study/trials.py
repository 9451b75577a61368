"""Runs all unfinished trials, and records the result of each in its directory and in the progress output."""

from __future__ import annotations

import contextlib
import errno
from collections import Counter, deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from flagformer.lab.study.design import Run, Study
from flagformer.lab.study.directory import FAILURE, trial_directory
from flagformer.lab.study.executor import Ended, Executor, Failure
from flagformer.lab.study.progress import Progress
from flagformer.lab.study.read_results import read_trial
from flagformer.lab.train.files import write_json

POLL = 0.2  # seconds
DONE = ("finished", "diverged")
RETRIED = ("killed", "lost")  # kinds of failures that the trial did not cause


class Interrupted(KeyboardInterrupt):
    """The study was interrupted; finished trials are kept."""


def run_trials(
    study: Study, directory: Path, executor: Executor[Run], retries: int, console: Console
) -> None:
    """Run the unfinished trials; retry each up to `retries` times if its process or node was lost.

    Raises:
        OSError: the disk is full.
        Interrupted: after a KeyboardInterrupt, once every trial has been ended.
    """
    todo = deque(run for run in study.runs if read_trial(directory, run).state not in DONE)
    total, lost = len(study.runs), Counter[str]()
    with Progress(study, directory, total - len(todo), console) as progress:
        try:
            while todo or executor.busy:
                while todo and executor.has_room:
                    run = todo.popleft()
                    folder = trial_directory(directory, run.trial.id)
                    (folder / FAILURE).unlink(missing_ok=True)
                    progress.started(run)
                    executor.start(run, run.trial, folder)
                for ended in executor.ended(POLL):
                    run, failure = ended.job, ended.failure
                    if failure and failure.kind in RETRIED and lost[run.trial.id] < retries:
                        lost[run.trial.id] += 1
                        progress.again(run, f"{failure.message}; attempt {lost[run.trial.id] + 1} follows")
                        todo.appendleft(run)
                    else:
                        _close(ended, directory, progress)
                progress.tick()
        except KeyboardInterrupt:
            executor.stop()
            kept = sum(read_trial(directory, run).state in DONE for run in study.runs)
            raise Interrupted(
                f"stopped: {kept} of {total} trials are finished and kept in {directory}; "
                "run the same command again to resume the others from their checkpoints"
            ) from None
        finally:
            executor.stop()


def _close(ended: Ended[Run], directory: Path, progress: Progress) -> None:
    """Record the end of a trial; a full disk stops the study, as all other trials would fail too."""
    run, failure = ended.job, ended.failure
    state = read_trial(directory, run)
    if failure is None and state.state not in DONE:
        failure = Failure("error", "the trial function returned without a result")
    if failure is None:
        progress.ended(run, None, _outcome(state.result or {}))
        return
    folder = trial_directory(directory, run.trial.id)
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / FAILURE, {"kind": failure.kind, "message": failure.message})
    progress.ended(run, failure, f"failed: {failure.message}")
    if failure.kind == "disk":
        text = (
            "the study was stopped, finished trials are kept; free some space and run the same command again"
        )
        raise OSError(errno.ENOSPC, f"{failure.message}; {text}")


def _outcome(result: Mapping[str, Any]) -> str:
    if result.get("status") == "diverged":
        return f"diverged at step {result.get('steps')}: the loss is not finite"
    measured = result["evaluation"][0]
    return f"finished, {measured['nats']:.4f} {measured.get('unit', 'nats')} at length {measured['seq_len']}"
