"""The work of each of two ranks."""

from pathlib import Path
from typing import Any

from tiny_trial import tiny

from flagformer.lab.train.process_group import Distributed, joined
from killed import run_until

LONG = {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "eval_every": 4}
# The changes of a tiny trial, the directory, "ddp" or "fsdp", and the step at which all ranks die.
Job = tuple[dict[str, Any], Path, Any, int | None]


def run_jobs(rank: int, jobs: tuple[Job, ...]) -> None:
    with joined():
        for job in jobs:
            changes, directory, parallel, die_at = job
            run_until(tiny(**changes), directory, Distributed(parallel), die_at)
