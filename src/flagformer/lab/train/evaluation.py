"""Evaluation of a model on held-out data."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.lab.data import IGNORE, Source, Split
from flagformer.lab.train.config import Trial
from flagformer.lab.train.loop import token_losses
from flagformer.lab.train.process_group import SINGLE, ProcessGroup, inner
from flagformer.lab.train.segment_reader import read_rows
from flagformer.ops.home import home_of

PARTS = 16  # of a row, each with its own mean loss
SEED = 0  # of the data: trials of all seeds are evaluated on the same rows


def evaluate(
    model: nn.Module, trial: Trial, split: Split, seq_len: int, ranks: ProcessGroup = SINGLE
) -> dict[str, Any]:
    """Mean loss in nats (for bytes also in bits per byte) and accuracy over `evaluate.batches` batches at one
    length.

    A batch has as many tokens as a training step, at least one row. Batches are distributed over ranks. The
    random generators and the model's mode are restored.
    """
    source, device = trial.source, home_of(model)[0]
    rows = max(1, trial.train.batch_size * source.seq_len // seq_len)
    model, training = inner(model), model.training
    model.eval()
    nats, right, scored, read = 0.0, 0, 0, 0
    is_bytes = source.is_bytes  # reads the files of tokenized data
    where = torch.zeros(2, 1, dtype=torch.float64)  # the loss and the scored targets of every position
    # no_grad, not inference_mode: tensors that a model caches here must be usable in training
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # all ranks of a sharded model must run equally many forwards: extra batches are ignored
        for turn in range(-(-trial.evaluate.batches // ranks.world)):
            step = turn * ranks.world + ranks.rank
            inputs, targets = (part.to(device) for part in source.batch(split, step, SEED, rows, seq_len))
            with torch.autocast(device.type, torch.bfloat16, enabled=trial.train.precision == "bf16"):
                logits = read_rows(model, inputs, trial.train.segment).logits
            if step >= trial.evaluate.batches:
                targets = torch.full_like(targets, IGNORE)
            losses = token_losses(logits, targets).double()
            nats += losses.sum().item()
            where = where + torch.stack([losses.sum(0), (targets != IGNORE).sum(0)]).cpu()
            right += int((logits.argmax(-1).view_as(targets) == targets).sum())
            scored += int((targets != IGNORE).sum())
            if is_bytes and step < trial.evaluate.batches:
                read += source.target_bytes(split, step, SEED, rows, seq_len)
    model.train(training)
    sums = ranks.total(torch.tensor([nats, right, scored, read], dtype=torch.float64)).tolist()
    figures = _figures(source, split, seq_len, sums)
    return figures | {"by_position": _by_position(ranks.total(where)) if math.isfinite(sums[0]) else None}


def _by_position(where: Tensor) -> list[float] | None:
    """Mean loss in at most 16 equal parts of the row; None if a part has no scored token."""
    parts = [part.sum(-1) for part in where.tensor_split(min(PARTS, where.shape[-1]), dim=-1)]
    return [(nats / scored).item() for nats, scored in parts] if all(part[1] for part in parts) else None


def _figures(source: Source, split: Split, seq_len: int, sums: list[float]) -> dict[str, Any]:
    """`sums`: nats, correct tokens, scored tokens, and bytes of the scored tokens (0: not applicable)."""
    nats, right, scored, read = sums
    finite = math.isfinite(nats)
    return {
        "split": split,
        "seq_len": seq_len,
        "nats": nats / scored if finite else None,
        "bits_per_byte": nats / math.log(2) / read if finite and read else None,
        "accuracy": right / scored,
        "chance": source.chance,
        "tokens": int(scored),
    }
