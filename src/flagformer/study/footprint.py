"""What a trial needs of a machine's memory, estimated on torch's meta device: nothing is computed."""

from __future__ import annotations

import json

import torch

import flagformer
from flagformer.study.costs import micro_batch, saved_bytes
from flagformer.study.design import Study
from flagformer.train.config import Trial

PROCESS = 200 * 2**20  # private to a trial's process beside its tensors: allocator, threads, data
COPIES = 16  # bytes for each parameter: fp32 weight, gradient and the two moments of AdamW
TEMPORARY = 1.5  # a backward holds gradients of activations beside the activations


def trial_bytes(study: Study) -> int:
    """The most that a trial of any variant and candidate is likely to need.

    An estimate: what a backward holds for a moment is counted as half of what was saved for it, evaluation at
    longer lengths as no more than training.
    """
    distinct: dict[str, Trial] = {}  # candidates mostly differ in what takes no memory, as learning rates
    for variant in study.compare:
        for tuned in study.candidates:
            trial = study.trial(variant, study.seeds[0], tuned)
            felt = [trial.flags, trial.train.batch_size, trial.train.accumulate, trial.train.segment]
            distinct.setdefault(json.dumps(felt, sort_keys=True), trial)
    return max(_bytes_of(trial) for trial in distinct.values())


def _bytes_of(trial: Trial) -> int:
    with torch.device("meta"):
        model = flagformer.build(trial.model_flags)
        saved = saved_bytes(model.train(), micro_batch(trial), trial.train.segment)
    params = sum(parameter.numel() for parameter in model.parameters())
    return round(PROCESS + COPIES * params + TEMPORARY * saved)
