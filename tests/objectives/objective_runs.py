"""A small trial of each objective, and trained models for independent checks."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch

import flagformer
from flagformer.lab.train.config import Trial
from flagformer.lab.train.trial import run_trial

ONE = {"dim": 16, "depth": 1, "heads": 2, "attn_dim_head": 8}
TWO = {"dim": 16, **{f"{half}_{name}": ONE[name] for half in ("enc", "dec") for name in ONE if name != "dim"}}
ROUTING = {"window_size": 4}
WINDOWS = {"enc_window_size": 4, "dec_window_size": 4}
SLOTS = {"num_memory_slots": 2, "mem_update_attn_heads": 2}
COPY = {"source": "copy", "symbols": 8, "seq_len": 12}
TEXT = {"source": "stdlib", "mib": 1.0, "seq_len": 24}
# (kind of model, objective) -> the flags without `model`, the data, and `objective` where it is no default
CASES: dict[tuple[str, str], tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    ("decoder", "next_token"): (ONE, COPY, None),
    ("prefix_decoder", "next_token"): (ONE, COPY, None),
    ("prefix_decoder", "prefix_lm"): ({**ONE, "depth": 2}, TEXT, {"name": "prefix_lm"}),
    ("routing_lm", "next_token"): ({**ONE, **ROUTING, "causal": True}, COPY, None),
    ("routing_lm", "masked_lm"): ({**ONE, **ROUTING}, COPY, None),
    ("encoder", "masked_lm"): ({**ONE, "attn_dropout": 0.1}, TEXT, None),
    ("encoder", "masked_diffusion"): (ONE, TEXT, {"name": "masked_diffusion"}),
    ("classifier", "sequence_classification"): (ONE, {"source": "parity", "seq_len": 12}, None),
    ("xtransformer", "sequence_to_sequence"): (TWO, {"source": "sort", "symbols": 8, "seq_len": 12}, None),
    ("xtransformer", "span_corruption"): (TWO, TEXT, None),
    ("memformer", "sequence_to_sequence"): (
        {**TWO, **SLOTS},
        {"source": "reverse", "symbols": 8, "seq_len": 12},
        None,
    ),
    ("routing_encdec", "sequence_to_sequence"): (
        {**TWO, **WINDOWS},
        {"source": "addition", "seq_len": 12},
        None,
    ),
    ("routing_lm", "masked_diffusion"): ({**ONE, **ROUTING}, COPY, {"name": "masked_diffusion"}),
    ("memformer", "span_corruption"): ({**TWO, **SLOTS}, TEXT, None),
    ("routing_encdec", "span_corruption"): ({**TWO, **WINDOWS}, {**TEXT, "seq_len": 32}, None),
    ("continuous", "regression"): (ONE, {"source": "sines", "seq_len": 12}, None),
    ("vit", "image_classification"): ({**ONE, "patch_size": 4}, {"source": "digits"}, None),
}
TRAIN = {"steps": 4, "batch_size": 4, "accumulate": 2, "warmup": 1, "lr": 1e-2, "device": "cpu"}


def trial_of(kind: str, objective: str, **train: Any) -> Trial:
    """The trial of a case; `train` changes its settings of training."""
    flags, data, given = CASES[kind, objective]
    content = {
        "flags": {"model": kind, **flags},
        "data": data,
        "objective": given,
        "train": {**TRAIN, **train},
        "evaluate": {"batches": 2},
        "seed": 3,
    }
    trial = Trial.model_validate(content)
    assert trial.trained_by.model_dump()["name"] == objective
    return trial


@cache
def directory_of(kind: str, objective: str) -> Path:
    """The directory of a finished trial."""
    directory = Path(mkdtemp())
    run_trial(trial_of(kind, objective), directory)
    return directory


@cache
def trained(kind: str, objective: str) -> tuple[Trial, dict[str, Any], Any]:
    """A trial, its result, and the model that it saved."""
    trial, directory = trial_of(kind, objective), directory_of(kind, objective)
    return trial, run_trial(trial, directory), flagformer.load(directory / "model").eval()


def held_out(trial: Trial) -> list[tuple[torch.Tensor, ...]]:
    """The batches of the final evaluation, from the objective."""
    objective, length = trial.trained_by, trial.source.seq_len
    rows = trial.train.batch_size
    return [objective.batch(trial.source, "test", step, 0, rows, length) for step in range(2)]


def nats(logits: torch.Tensor, target: int) -> float:
    """The cross entropy of one target under logits [V], in fp64."""
    scores = logits.double()
    return float(scores.logsumexp(0) - scores[target])


def mean_nats(found: list[tuple[torch.Tensor, torch.Tensor]]) -> tuple[float, float, int]:
    """Mean loss, accuracy and number of the scored targets of (logits [B, T, V], targets), by loops."""
    losses, right = [], 0
    for logits, targets in found:
        for row in range(len(targets)):
            for place in range(targets.shape[1]):
                target = int(targets[row, place])
                if target >= 0:
                    losses.append(nats(logits[row, place], target))
                    right += int(int(logits[row, place].argmax()) == target)
    return sum(losses) / len(losses), right / len(losses), len(losses)
