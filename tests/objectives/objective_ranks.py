"""The work of each of two ranks: trials of objectives, one after another in one process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import objective_runs

from flagformer.lab.train import trial as trial_module
from flagformer.lab.train.config import Trial
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.process_group import Distributed, joined

STILL = {"attn_dropout": 0.0}  # ranks draw different dropout
WITHOUT_DROPOUT = ("encoder", "masked_lm")
# The kind of model, the objective, "ddp" or "fsdp", the directory, and the step at which all ranks die.
Job = tuple[str, str, Any, Path, int | None]


class Killed(BaseException):
    """No handler of the program may catch it."""


def still(kind: str, name: str) -> Trial:
    """The trial of a case without dropout, with a third batch of evaluation that one rank has alone."""
    # AdamW divides gradients near 0 by their own size: at a rate of 1e-2 their rounding moves weights by 2e-5
    train = {"checkpoint_every": 2, "eval_every": 2, "lr": 2e-3}
    content = objective_runs.trial_of(kind, name, **train).model_dump()
    if (kind, name) == WITHOUT_DROPOUT:
        content["flags"] = {**content["flags"], **STILL}
    return Trial.model_validate({**content, "evaluate": {"batches": 3}})


def run(kind: str, name: str, parallel: Any, directory: Path, die_at: int | None) -> None:
    """Run or resume a trial."""
    steps: list[None] = []

    def mortal(*arguments: Any) -> Any:
        steps.append(None)
        if len(steps) == die_at:
            raise Killed
        return train_step(*arguments)

    trial_module.train_step = mortal
    try:
        trial_module.run_trial(still(kind, name), directory, ranks=Distributed(parallel))
    except Killed:
        assert die_at is not None


def run_jobs(rank: int, jobs: tuple[Job, ...]) -> None:
    with joined():
        for job in jobs:
            try:
                run(*job)
            except Exception as error:
                raise AssertionError(f"{job[:3]} failed") from error
