"""The training loop: one update of the weights, in plain torch."""

from typing import NamedTuple

import torch
from torch import nn

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.feedforward.balance_bias import update_router_bias
from flagformer.lab.objectives import Batch, Objective
from flagformer.lab.objectives.next_token import NextToken
from flagformer.lab.train.averages import update_average
from flagformer.lab.train.process_group import SINGLE, ProcessGroup
from flagformer.lab.train.settings import TrainConfig

NEXT_TOKEN = NextToken()


class Step(NamedTuple):
    """The results of one update: mean loss in nats per counted target, and the gradient norm before clipping
    (None without clipping).
    """

    loss: float
    gradient_norm: float | None
    finite: bool


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    lr: float,
    config: TrainConfig,
    ranks: ProcessGroup = SINGLE,
    objective: Objective = NEXT_TOKEN,
) -> Step:
    """Update the weights from one batch; each rank trains on its share of the rows in `accumulate`
    micro-batches. There is no update if the loss or the norm is not finite.

    Every counted target has the same weight, so the gradient does not depend on how the batch is divided.
    Auxiliary losses (label smoothing, z-losses, routing attention, mixtures of experts) are trained on, but
    are not part of the reported loss. The centroids of routing attention and the balance biases of experts
    are updated once per step, from all micro-batches.
    """
    targets = batch[-1]
    # gradients are averaged over ranks, losses are sums
    mean = ranks.world / objective.counted(targets).sum()
    total = torch.zeros((), device=targets.device)
    parts = [ranks.share(part).chunk(config.accumulate) for part in batch]
    for number, (*inputs, wanted) in enumerate(zip(*parts), start=1):
        with ranks.accumulating(model, last=number == config.accumulate):
            with torch.autocast(targets.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits, extra = objective.ask(model, tuple(inputs), config.segment, losses=True)
            loss = objective.losses(logits, wanted).sum() * mean
            trained, penalties = loss, (config.label_smoothing, config.z_loss)
            if any(penalties):
                trained = loss + objective.penalties(logits, wanted, *penalties).sum() * mean
            weight = len(wanted) * ranks.world / len(targets)
            (trained if extra is None else trained + extra * weight).backward()
        total += loss.detach()
    total = ranks.total(total) / ranks.world
    norm = ranks.clip(model.parameters(), config.clip) if config.clip else None
    finite = bool(torch.isfinite(total)) and (norm is None or norm < float("inf"))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = lr * group.get("scale", 1.0)
        optimizer.step()
        if config.ema:
            update_average(optimizer, config.ema)
        update_kmeans(model)
        update_router_bias(model)
    optimizer.zero_grad(set_to_none=True)
    return Step(total.item(), norm, finite)
