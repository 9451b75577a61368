"""Evaluation of a model on held-out data."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from flagformer.lab.data import Split
from flagformer.lab.objectives import NATS, Objective
from flagformer.lab.objectives.own import measured, metric_name
from flagformer.lab.objectives.wrapped import inner
from flagformer.lab.train.config import Trial
from flagformer.lab.train.process_group import SINGLE, ProcessGroup
from flagformer.ops.home import home_of

PARTS = 16  # of a row, each with its own mean loss
SEED = 0  # of the data: trials of all seeds are evaluated on the same rows


def evaluate(
    model: nn.Module,
    trial: Trial,
    split: Split,
    seq_len: int,
    ranks: ProcessGroup = SINGLE,
    answers: bool = False,
) -> dict[str, Any]:
    """Mean loss in nats (for bytes also in bits per byte) and the metric of the objective over
    `evaluate.batches` batches at one length; with `answers` also the share of rows that are generated without
    a mistake, for data with one right answer.

    A batch has as many tokens as a training step, at least one row. Batches are distributed over ranks. The
    random generators and the model's mode are restored.
    """
    source, objective, device = trial.source, trial.trained_by, home_of(model)[0]
    rows = max(1, trial.train.batch_size * source.seq_len // seq_len)
    model, training = inner(model), model.training
    model.eval()
    sums = Sums(trial.evaluate.metrics)
    is_bytes = objective.is_bytes(source)  # reads the files of tokenized data
    answers = answers and objective.has_answers(source)
    # no_grad, not inference_mode: tensors that a model caches here must be usable in training
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        # all ranks of a sharded model must run equally many forwards: extra batches are ignored
        for turn in range(-(-trial.evaluate.batches // ranks.world)):
            step = turn * ranks.world + ranks.rank
            batch = objective.batch(source, split, step, SEED, rows, seq_len)
            *inputs, targets = (part.to(device) for part in batch)
            with torch.autocast(device.type, torch.bfloat16, enabled=trial.train.precision == "bf16"):
                logits = objective.ask(model, tuple(inputs), trial.train.segment, losses=False).logits
                exact = objective.exact_rows(model, tuple(inputs), targets) if answers else None
            if step >= trial.evaluate.batches:
                continue
            sums.add(objective, logits, targets, exact)
            if is_bytes:
                sums.bytes += source.target_bytes(split, step, SEED, rows, seq_len)
    model.train(training)
    length = objective.losses(logits[:1], targets[:1]).shape[1]
    return _figures(trial, split, seq_len, *sums.total(ranks, length))


class Sums:
    """Sums over the batches of an evaluation."""

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self.metrics = dict.fromkeys(metrics, (0.0, 0.0))  # sum and count of each
        self.nats, self.score, self.scored, self.bytes = 0.0, 0.0, 0.0, 0
        self.exact, self.rows = 0, 0
        self.where = torch.zeros(2, 1, dtype=torch.float64)  # loss and counted targets of every position

    def add(self, objective: Objective, logits: Tensor, targets: Tensor, exact: Tensor | None) -> None:
        """Add one batch; `exact` is bool [B], whether each generated row is right."""
        losses = objective.losses(logits, targets).double()
        self.nats += losses.sum().item()
        self.where = self.where + torch.stack([losses.sum(0), objective.counted(targets).sum(0)]).cpu()
        score, scored = objective.score(logits, targets)
        self.score, self.scored = self.score + score, self.scored + scored
        for path, (total, count) in self.metrics.items():
            more, of = measured(path, logits, targets)
            self.metrics[path] = (total + more, count + of)
        if exact is not None:
            self.exact, self.rows = self.exact + int(exact.sum()), self.rows + len(exact)

    def total(self, ranks: ProcessGroup, length: int) -> tuple[list[float], Tensor]:
        """The sums over ranks: nats, score, scored, bytes, exact rows and rows, then sum and count of each
        own metric; and those by position."""
        sums = [self.nats, self.score, self.scored, self.bytes, self.exact, self.rows]
        sums += [value for pair in self.metrics.values() for value in pair]
        where = self.where.expand(2, length).clone()  # a rank may have no batch
        return ranks.total(torch.tensor(sums, dtype=torch.float64)).tolist(), ranks.total(where)


def _by_position(where: Tensor) -> list[float] | None:
    """Mean loss in at most 16 equal parts of the row; None if a part has no scored token."""
    parts = [part.sum(-1) for part in where.tensor_split(min(PARTS, where.shape[-1]), dim=-1)]
    return [(nats / scored).item() for nats, scored in parts] if all(part[1] for part in parts) else None


def _own_metrics(trial: Trial, sums: list[float]) -> dict[str, dict[str, float | None]]:
    """The mean of each own metric, by the name of its function; None without a count."""
    names = [metric_name(path) for path in trial.evaluate.metrics]
    pairs = zip(names, sums[::2], sums[1::2])
    return (
        {"metrics": {name: total / count if count else None for name, total, count in pairs}} if names else {}
    )


def _figures(trial: Trial, split: Split, seq_len: int, sums: list[float], where: Tensor) -> dict[str, Any]:
    """The entry of an evaluation, from the results of `Sums.total`."""
    nats, score, scored, read, exact, rows, *own = sums
    counted = where[1].sum().item()
    mean = nats / counted if math.isfinite(nats) else None
    objective = trial.trained_by
    return {
        "split": split,
        "seq_len": seq_len,
        "nats": mean,
        **({} if objective.unit == NATS else {"unit": objective.unit}),
        "bits_per_byte": nats / math.log(2) / read if mean is not None and read else None,
        "accuracy": score / scored,
        **({"exact_match": exact / rows} if rows else {}),
        **({} if mean is None else objective.figures(mean)),
        **_own_metrics(trial, own),
        "chance": objective.chance(trial.source),
        "tokens": int(counted),
        "by_position": _by_position(where) if mean is not None else None,
    }
