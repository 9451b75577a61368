"""The training loop: one update of the weights, in plain torch."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flagformer.attention.cores.kmeans import update_kmeans
from flagformer.feedforward.balance_bias import update_router_bias
from flagformer.lab.data import IGNORE
from flagformer.lab.train.config import TrainConfig
from flagformer.lab.train.process_group import SINGLE, ProcessGroup
from flagformer.lab.train.segment_reader import read_rows


class Step(NamedTuple):
    """The results of one update: mean loss in nats per scored token, and the gradient norm before clipping
    (None without clipping).
    """

    loss: float
    gradient_norm: float | None
    finite: bool


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Fused AdamW, with weight decay on matrices only (not on norm weights and biases)."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, betas=config.betas, fused=True)


def token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy in nats at every position, fp32 [B, T]; 0 where the target is not scored. Logits are [B,
    T, V], or [B, V] for one target a row, T = 1."""
    flat = logits.reshape(-1, logits.shape[-1]).float()  # [B * T, V]
    losses = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="none")
    return losses.view_as(targets)


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    lr: float,
    config: TrainConfig,
    ranks: ProcessGroup = SINGLE,
) -> Step:
    """Update the weights from one batch; each rank trains on its share of the rows in `accumulate`
    micro-batches. There is no update if the loss or the norm is not finite.

    Every scored token has the same weight, so the gradient does not depend on how the batch is divided.
    Auxiliary losses (z-loss of attention, routing attention, mixtures of experts) are trained on, but are not
    part of the reported loss. The centroids of routing attention and the balance biases of experts are
    updated once per step, from all micro-batches.
    """
    inputs, targets = batch
    mean = ranks.world / (targets != IGNORE).sum()  # gradients are averaged over ranks, losses are sums
    total = torch.zeros((), device=inputs.device)
    parts = [ranks.share(part).chunk(config.accumulate) for part in batch]
    for number, (ids, wanted) in enumerate(zip(*parts), start=1):
        with ranks.accumulating(model, last=number == config.accumulate):
            with torch.autocast(inputs.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
                logits, extra = read_rows(model, ids, config.segment, losses=True)
            loss = token_losses(logits, wanted).sum() * mean
            weight = len(ids) * ranks.world / len(inputs)
            (loss if extra is None else loss + extra * weight).backward()
        total += loss.detach()
    total = ranks.total(total) / ranks.world
    norm = ranks.clip(model.parameters(), config.clip) if config.clip else None
    finite = bool(torch.isfinite(total)) and (norm is None or norm < float("inf"))
    if finite:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        update_kmeans(model)
        update_router_bias(model)
    optimizer.zero_grad(set_to_none=True)
    return Step(total.item(), norm, finite)
