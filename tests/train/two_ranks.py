"""The work of each of two ranks; started by torchrun: two_ranks.py JOBS.json.

A job: the changes of a tiny trial, the directory, "ddp" or "fsdp", and the step at which all ranks die.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from tiny_trial import Killed, tiny

from flagformer.lab.train import trial as trial_module
from flagformer.lab.train.loop import train_step
from flagformer.lab.train.process_group import Distributed, exit_rank, joined

LONG = {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "eval_every": 4}


def run(changes: dict[str, Any], directory: str, parallel: Any, die_at: int | None) -> None:
    steps: list[None] = []

    def mortal(*arguments: Any) -> Any:
        steps.append(None)
        if len(steps) == die_at:
            raise Killed
        return train_step(*arguments)

    trial_module.train_step = mortal
    try:
        trial_module.run_trial(tiny(**changes), Path(directory), ranks=Distributed(parallel))
    except Killed:
        assert die_at is not None


if __name__ == "__main__":
    torch.set_num_threads(1)
    with joined():
        for job in json.loads(Path(sys.argv[1]).read_text()):
            run(*job)
    exit_rank()
