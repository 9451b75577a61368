"""The number of parallel trials and threads on one machine, by its cores and memory."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch

from flagformer.lab.study.costs import Cost
from flagformer.lab.study.design import Study
from flagformer.lab.study.footprint import trial_bytes
from flagformer.ops.memory import GIB, free_memory

USED = 0.8  # of the free memory, as estimates are not exact and the system needs some too


@dataclass(frozen=True)
class ResourcePlan:
    """`at_once` parallel trials with `threads` threads each; `trial` and `free` memory in bytes, None if
    unknown; `why`: the reason for `at_once`."""

    at_once: int
    threads: int
    trial: int
    free: int | None
    why: str


def share_out(study: Study, costs: dict[str, Cost] | None = None) -> ResourcePlan:
    """Plan the parallel trials and their threads: `concurrency` and `threads` of the file, or one trial per
    core (per `threads` cores; one on a GPU), as long as they fit into 80 % of the free memory.

    The plan counts all trials of the study, also finished ones, so that a resumed study has the same plan. On
    a Ray cluster a trial reserves one core, and the cluster schedules. The memory of a trial is `memory` of
    the file, or the estimate of `footprint.trial_bytes` from `costs`, if known.
    """
    cores, free, total = count_cores(), free_memory(swap=False), len(study.runs)
    need = round(study.memory * GIB) if study.memory else trial_bytes(study, costs)
    if study.executor == "ray":
        return ResourcePlan(
            study.concurrency or total, study.threads or 1, need, None, "limited by the cluster"
        )
    if study.concurrency:
        at_once, why = study.concurrency, "set by `concurrency`"
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
    """Whether the trials train on a GPU if one is `present`."""
    devices = {study.train_of(variant).device for variant in study.compare}
    return "cuda" in devices or ("auto" in devices and present)


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
