"""What a trial needs of a machine's memory, estimated on torch's meta device: nothing is computed."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

import flagformer
from flagformer.study.costs import Cost, micro_batch, recomputed_bytes, saved_bytes
from flagformer.study.design import Study
from flagformer.train.config import Trial

# Private to a trial's process beside its tensors: data, threads, and memory that is free but stays with the
# C library's allocator. Measured at dim 128, 8 rows of 512: 40 MiB (a tiny model) to 180 (reversible).
PROCESS = 200 * 2**20
COPIES = 16  # bytes for each parameter: fp32 weight, gradient and the two moments of AdamW
TEMPORARY = 1.5  # a backward holds gradients of activations beside the activations


def trial_bytes(study: Study, costs: Mapping[str, Cost] | None = None) -> int:
    """The most that a trial of any variant and candidate is likely to need; `costs` are those of first
    candidates, where they are known.

    An estimate: what a backward holds for a moment is counted as half of what was saved for it, evaluation at
    longer lengths as no more than training. A trial measured 0.45 to 1 times as much in fp32.
    """
    return max(bytes_by_variant(study, costs).values())


def bytes_by_variant(study: Study, costs: Mapping[str, Cost] | None = None) -> dict[str, int]:
    """The most of each variant's candidates."""
    known: dict[str, int] = {}  # candidates mostly differ in what takes no memory, as learning rates
    found: dict[str, int] = {}
    for variant in study.compare:
        for tuned in study.candidates:
            trial = study.trial(variant, study.seeds[0], tuned)
            felt = [trial.flags, trial.train.batch_size, trial.train.accumulate, trial.train.segment]
            key = json.dumps(felt, sort_keys=True)
            if key not in known:
                first = costs.get(variant) if costs and tuned == study.candidates[0] else None
                known[key] = bytes_of(trial) if first is None else _bytes_at(first)
            found[variant] = max(found.get(variant, 0), known[key])
    return found


def bytes_of(trial: Trial) -> int:
    """What one trial is likely to need."""
    with torch.device("meta"):
        model = flagformer.build(trial.model_flags)
        read = (model.train(), micro_batch(trial), trial.train.segment)
        saved = saved_bytes(*read) + recomputed_bytes(*read)
    return _bytes(sum(parameter.numel() for parameter in model.parameters()), saved)


def _bytes_at(cost: Cost) -> int:
    return _bytes(cost.params, cost.memory_bytes - COPIES * cost.params)


def _bytes(params: int, saved: int) -> int:
    return round(PROCESS + COPIES * params + TEMPORARY * saved)
