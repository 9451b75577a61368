"""Checks that this machine has the devices and the memory for a study or a training run."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from flagformer.lab.study.config_errors import ConfigError, StudyFileError
from flagformer.lab.study.costs import Cost
from flagformer.lab.study.design import Study
from flagformer.lab.study.footprint import PROCESS, bytes_by_variant, bytes_of
from flagformer.lab.study.source import Source
from flagformer.lab.train.config import TrainConfig, Trial
from flagformer.lab.train.device import device_of
from flagformer.ops.memory import GIB, whole_memory

LESS = "lower `batch_size` or `seq_len`, raise `accumulate`, or make the model smaller"
OVERRIDE = "`memory` (GiB of a trial) in the file overrides this estimate"


def refuse_missing_devices(study: Study, source: Source) -> None:
    """Raise StudyFileError if a variant's training device does not exist; not for Ray clusters."""
    if study.executor == "ray":
        return
    mistakes = set()
    for variant in study.compare:
        try:
            device_of(study.train_of(variant))
        except ValueError as error:
            own = ("compare", variant, "train", "device")
            route = own if source.has(own) else ("train", "device")
            mistakes.add(source.mistake(route, str(error)))
    if mistakes:
        raise StudyFileError(mistakes)


def refuse_insufficient_memory(study: Study, source: Source, costs: Mapping[str, Cost]) -> None:
    """Raise StudyFileError if a trial, or `concurrency` parallel trials, need more memory than there is."""
    if study.executor == "ray":
        return
    needs = bytes_by_variant(study, dict(costs)) if study.memory is None else {}
    mistakes = [
        source.mistake(("compare", variant), f"variant `{variant}` needs {short}; {LESS}; {OVERRIDE}")
        for variant, need in needs.items()
        if (short := shortage(study.train_of(variant), need))
    ]
    own = round(study.memory * GIB) if study.memory else 0
    if own and (short := shortage(study.train_of(study.baseline), own)):
        mistakes.append(source.mistake(("memory",), f"`memory` is too large: a trial needs {short}"))
    if not mistakes and study.concurrency:
        mistakes += _too_many_trials(study, source, own or max(needs.values()))
    if mistakes:
        raise StudyFileError(mistakes)


def check_machine(trial: Trial, *, alone: bool) -> None:
    """Raise ValueError if the device of a trial does not exist, or it needs more memory than there is.

    With several processes (`alone` is False) the memory of each is not estimated.
    """
    device_of(trial.train)
    if alone and (short := shortage(trial.train, bytes_of(trial))):
        raise ValueError(f"training needs {short}; {LESS}")


def shortage(train: TrainConfig, need: int) -> str:
    """The required and the existing memory if the latter is smaller: "about 2.0 GiB of memory, but ..."."""
    device = device_of(train)
    if device.type == "cuda":
        need -= PROCESS  # on the host
        has: int | None = torch.cuda.get_device_properties(device).total_memory
        where = "the GPU"
    else:
        has, where = whole_memory(), "this machine"
    if has is None or need <= has:
        return ""
    return f"about {need / GIB:.1f} GiB of memory, but {where} has {has / GIB:.1f} GiB"


def _too_many_trials(study: Study, source: Source, need: int) -> list[ConfigError]:
    assert study.concurrency is not None
    at_once = min(study.concurrency, len(study.runs))
    short = shortage(study.train_of(study.baseline), at_once * need)
    if not short:
        return []
    text = (
        f"`concurrency` must be smaller: {at_once} trials of about {need / GIB:.1f} GiB each need {short}"
        "; lower it or leave it out"
    )
    return [source.mistake(("concurrency",), text)]
