"""How many trials run at once on one machine, and with how many threads: by its cores and by its memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from flagformer.ops.memory import GIB, free_memory
from flagformer.study.costs import Cost
from flagformer.study.design import Study
from flagformer.study.footprint import trial_bytes

USED = 0.8  # of the free memory: estimates are estimates, and the system wants some too


@dataclass(frozen=True)
class ResourcePlan:
    """`at_once` trials with `threads` threads each; `trial` and `free` are bytes, None where unknown."""

    at_once: int
    threads: int
    trial: int
    free: int | None
    why: str


def share_out(study: Study, costs: dict[str, Cost] | None = None) -> ResourcePlan:
    """Trials at once and threads of each: the file's `concurrency` and `threads`, or one trial for each core
    (each `threads` cores; each GPU machine), as long as all of them fit into 80 % of the free memory.

    Cores are counted over all trials of the study, not over those left, so that a resumed study shares them
    as before. A Ray cluster is asked for one core a trial, and shares itself out. What a trial needs is the
    file's `memory`, or estimated by `footprint.trial_bytes`, which reads `costs` where they are known.
    """
    cores, free, total = count_cores(), free_memory(swap=False), len(study.runs)
    need = round(study.memory * GIB) if study.memory else trial_bytes(study, costs)
    if study.executor == "ray":
        return ResourcePlan(
            study.concurrency or total, study.threads or 1, need, None, "as far as the cluster has room"
        )
    if study.concurrency:
        at_once, why = study.concurrency, "as the file says"
    else:
        on_gpu = uses_gpu(study, torch.cuda.is_available())
        most = 1 if on_gpu else max(1, cores // (study.threads or 1))
        fitting = max(1, int(USED * free / need)) if free else most
        at_once = max(1, min(most, fitting, total))
        why = f"{cores} cores" if not on_gpu else "one GPU"
        if fitting < min(most, total):
            why = f"{free / GIB:.1f} GiB of free memory" if free else why
    return ResourcePlan(at_once, study.threads or max(1, cores // at_once), need, free, why)


def uses_gpu(study: Study, present: bool) -> bool:
    """Whether the trials train on a GPU where one is `present`."""
    devices = {study.train_of(variant).device for variant in study.compare}
    return "cuda" in devices or ("auto" in devices and present)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
