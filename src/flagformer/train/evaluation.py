"""Measuring a model on held-out data."""

import math
from typing import Any

import torch
from torch import nn

from flagformer.data import IGNORE, Source, Split
from flagformer.train.config import Trial
from flagformer.train.loop import token_losses
from flagformer.train.ranks import ALONE, Ranks, inner

SEED = 0  # of the data, not the trial's: trials of all seeds are measured on the same rows


def evaluate(
    model: nn.Module, trial: Trial, split: Split, seq_len: int, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """Mean loss in nats (for bytes also in bits per byte) and accuracy over `evaluate.batches` batches at one
    length.

    A batch has as many tokens as a training step, at least one row. Ranks take batches in turn. The
    generators and the model's mode are left as they were.
    """
    source, device = trial.source, next(model.parameters()).device
    rows = max(1, trial.train.batch_size * source.seq_len // seq_len)
    model, training = inner(model), model.training
    model.eval()
    nats, right, scored = 0.0, 0, 0
    # no_grad, not inference_mode: what a model caches here must still serve in training
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # a sharded model is computed by all ranks equally often: some see a batch that does not count
        for turn in range(-(-trial.evaluate.batches // ranks.world)):
            step = turn * ranks.world + ranks.rank
            inputs, targets = (part.to(device) for part in source.batch(split, step, SEED, rows, seq_len))
            with torch.autocast(device.type, torch.bfloat16, enabled=trial.train.precision == "bf16"):
                logits = model(inputs)
            if step >= trial.evaluate.batches:
                break
            nats += token_losses(logits, targets).double().sum().item()
            right += int((logits.argmax(-1) == targets).sum())
            scored += int((targets != IGNORE).sum())
    model.train(training)
    sums = ranks.total(torch.tensor([nats, right, scored], dtype=torch.float64)).tolist()
    nats, right, scored = sums[0], int(sums[1]), int(sums[2])
    return _figures(source, split, seq_len, nats / scored, right / scored, scored)


def _figures(
    source: Source, split: Split, seq_len: int, nats: float, accuracy: float, scored: int
) -> dict[str, Any]:
    finite = math.isfinite(nats)
    return {
        "split": split,
        "seq_len": seq_len,
        "nats": nats if finite else None,
        "bits_per_byte": nats / math.log(2) if finite and source.is_bytes else None,
        "accuracy": accuracy,
        "chance": source.chance,
        "tokens": scored,
    }
