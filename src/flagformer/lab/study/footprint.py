"""Estimate of a trial's memory on torch's meta device, without computing anything."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

import flagformer
from flagformer.lab.study.costs import Cost, micro_batch, recomputed_bytes, saved_bytes
from flagformer.lab.study.design import Study
from flagformer.lab.train.config import Trial

# Memory of a trial's process in addition to its tensors: data, threads, and free memory that the C library's
# allocator keeps. Measured at dim 128, 8 rows of 512: 40 MiB (a tiny model) to 180 (reversible).
PROCESS = 200 * 2**20
COPIES = 16  # bytes for each parameter: fp32 weight, gradient and the two moments of AdamW
TEMPORARY = 1.5  # a backward holds gradients of activations in addition to the activations


def trial_bytes(study: Study, costs: Mapping[str, Cost] | None = None) -> int:
    """The largest estimate over all variants and candidates; `costs` are those of the first candidates, if
    known.

    Temporary tensors of a backward count as half of the saved tensors, evaluation at longer lengths as no
    more than training. Measured trials used 0.45 to 1 times the estimate in fp32.
    """
    return max(bytes_by_variant(study, costs).values())


def bytes_by_variant(study: Study, costs: Mapping[str, Cost] | None = None) -> dict[str, int]:
    """The largest estimate over the candidates of each variant."""
    known: dict[str, int] = {}  # most candidates differ only in settings without memory, as learning rates
    found: dict[str, int] = {}
    for variant in study.compare:
        for tuned in study.candidates:
            trial = study.trial(variant, study.seeds[0], tuned)
            relevant = [
                trial.model_flags,
                trial.train.batch_size,
                trial.train.accumulate,
                trial.train.segment,
            ]
            key = json.dumps(relevant, sort_keys=True)
            if key not in known:
                first = costs.get(variant) if costs and tuned == study.candidates[0] else None
                known[key] = bytes_of(trial) if first is None else _bytes_at(first)
            found[variant] = max(found.get(variant, 0), known[key])
    return found


def bytes_of(trial: Trial) -> int:
    """The estimate for one trial."""
    with torch.device("meta"):
        model = flagformer.build(trial.model_flags)
        read = (model.train(), micro_batch(trial), trial.train.segment, trial.trained_by)
        saved = saved_bytes(*read) + recomputed_bytes(*read)
    return _bytes(sum(parameter.numel() for parameter in model.parameters()), saved)


def _bytes_at(cost: Cost) -> int:
    return _bytes(cost.params, cost.memory_bytes - COPIES * cost.params)


def _bytes(params: int, saved: int) -> int:
    return round(PROCESS + COPIES * params + TEMPORARY * saved)
