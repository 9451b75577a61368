"""The work of each of two ranks: trials of objectives, one after another in one process group."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import objective_runs

from flagformer.lab.train.config import Trial
from flagformer.lab.train.process_group import Distributed, joined
from killed import run_until

STILL = {"attn_dropout": 0.0}  # ranks draw different dropout
WITHOUT_DROPOUT = ("encoder", "masked_lm")
# The kind of model, the objective, "ddp" or "fsdp", the directory, and the step at which all ranks die.
Job = tuple[str, str, Any, Path, int | None]


def still(kind: str, name: str) -> Trial:
    """The trial of a case without dropout, with a third batch of evaluation that one rank has alone."""
    # AdamW divides gradients near 0 by their own size: at a rate of 1e-2 their rounding moves weights by 2e-5
    train = {"checkpoint_every": 2, "eval_every": 2, "lr": 2e-3}
    content = objective_runs.trial_of(kind, name, **train).model_dump()
    if (kind, name) == WITHOUT_DROPOUT:
        content["flags"] = {**content["flags"], **STILL}
    return Trial.model_validate({**content, "evaluate": {"batches": 3}})


def run_jobs(rank: int, jobs: tuple[Job, ...]) -> None:
    with joined():
        for kind, name, parallel, directory, die_at in jobs:
            try:
                run_until(still(kind, name), directory, Distributed(parallel), die_at)
            except Exception as error:
                raise AssertionError(f"{(kind, name, parallel)} failed") from error
