"""Simulated kills of training: an exception that no handler of the program may catch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from flagformer.lab.train import trial as trial_module
from flagformer.lab.train.config import Trial
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.process_group import ProcessGroup


class Killed(BaseException):
    """Simulates a kill."""


def killer(step: int) -> Callable[[dict[str, Any]], None]:
    """A report that kills the run when `step` has been logged and not yet been saved."""

    def report(line: dict[str, Any]) -> None:
        if line["step"] == step:
            raise Killed

    return report


def run_until(trial: Trial, directory: Path, ranks: ProcessGroup, die_at: int | None) -> None:
    """Run or resume a trial on every rank; with `die_at` all ranks die in that step of this run."""
    steps: list[None] = []

    def mortal(*arguments: Any) -> Any:
        steps.append(None)
        if len(steps) == die_at:
            raise Killed
        return train_step(*arguments)

    trial_module.train_step = mortal
    try:
        trial_module.run_trial(trial, directory, ranks=ranks)
    except Killed:
        assert die_at is not None
