"""What a trial needs of a machine's memory, estimated on torch's meta device: nothing is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import flagformer
from flagformer.study.file import Study
from flagformer.train.config import Trial
from flagformer.train.loop import token_losses

PROCESS = 200 * 2**20  # private to a trial's process beside its tensors: allocator, threads, data
COPIES = 16  # bytes for each parameter: fp32 weight, gradient and the two moments of AdamW
TEMPORARY = 1.5  # a backward holds gradients of activations beside the activations


def trial_bytes(study: Study) -> int:
    """The most that a trial of any variant is likely to need.

    An estimate: what a backward holds for a moment is counted as half of what was saved for it, evaluation at
    longer lengths as no more than training.
    """
    return max(_bytes_of(study.trial(variant, study.seeds[0])) for variant in study.compare)


def _bytes_of(trial: Trial) -> int:
    rows = trial.train.batch_size // trial.train.accumulate
    with torch.device("meta"):
        model = flagformer.build(trial.model_flags)
    saved = saved_bytes(model, rows, trial.source.seq_len)
    return round(PROCESS + COPIES * model.num_params() + TEMPORARY * saved)


def saved_bytes(model: Any, rows: int, seq_len: int) -> int:
    """What a forward of `model`, on the meta device, and its loss keep for the backward."""
    storages: dict[int, torch.UntypedStorage] = {}  # kept: a freed one's address is given out again

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage
        return tensor

    ids = torch.zeros(rows, seq_len, dtype=torch.long, device="meta")
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        token_losses(model(ids), ids).sum()
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in weights)
