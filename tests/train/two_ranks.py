"""The work of each of two ranks."""

from pathlib import Path
from typing import Any

from tiny_trial import Killed, tiny

from flagformer.lab.train import trial as trial_module
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.process_group import Distributed, joined

LONG = {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "eval_every": 4}
# The changes of a tiny trial, the directory, "ddp" or "fsdp", and the step at which all ranks die.
Job = tuple[dict[str, Any], Path, Any, int | None]


def run(changes: dict[str, Any], directory: Path, parallel: Any, die_at: int | None) -> None:
    steps: list[None] = []

    def mortal(*arguments: Any) -> Any:
        steps.append(None)
        if len(steps) == die_at:
            raise Killed
        return train_step(*arguments)

    trial_module.train_step = mortal
    try:
        trial_module.run_trial(tiny(**changes), directory, ranks=Distributed(parallel))
    except Killed:
        assert die_at is not None


def run_jobs(rank: int, jobs: tuple[Job, ...]) -> None:
    with joined():
        for job in jobs:
            run(*job)
