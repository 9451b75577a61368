"""Load balancing of experts without a loss: a bias of each expert in the choice (arXiv:2408.15664)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from flagformer.ops.experts import RouterOutput
from flagformer.ops.reminder import mark_updated
from flagformer.ops.traced import cacheable

REMINDER = (
    "the optimizer has made two steps, but the balance biases of experts (`moe_balance_bias`) have not moved:"
    " call `flagformer.update_router_bias(model)` after each `optimizer.step()`, or once "
    "`optimizer.register_step_post_hook(lambda *_: flagformer.update_router_bias(model))`"
)


class BalanceBias(nn.Module):
    """A number for each of E experts, added to its score for the choice, in fp32 whatever the model's dtype.

    Training forwards count the tokens of each expert. `update` then adds `rate` to the bias of experts with
    fewer tokens than the mean, and subtracts it where there are more; call it once for each step of the
    optimizer. Nothing else changes the bias; it has no gradient. Forwards under transforms of `torch.func`,
    exported ones and those of fake tensors count nothing: their tensors end with the trace.

    Attributes:
        bias: [E] fp32 buffer, initially zero.
    """

    bias: Tensor

    def __init__(self, experts: int, rate: float) -> None:
        super().__init__()
        self.rate = rate
        self.register_buffer("bias", torch.empty(experts, dtype=torch.float32))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.bias.zero_()
        # no buffer: it is not saved, and distributed wrappers do not overwrite it between two forwards
        self.pending_stats: Tensor | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        before = self.bias
        after = fn(before)
        self.bias = after if after.dtype == before.dtype else before.to(after.device)
        return self

    def forward(self) -> Tensor:
        return self.bias

    @torch.no_grad()
    def count(self, routed: RouterOutput, valid: Tensor | None) -> None:
        """Count the tokens [T] of each expert; `valid` [T] bool, or None if all tokens are valid."""
        if not cacheable(routed.probabilities):
            return
        ones = torch.ones_like(routed.experts, dtype=torch.float32)
        if valid is not None:
            ones = ones * valid[:, None]
        counts = torch.zeros_like(self.bias).index_add(0, routed.experts.flatten(), ones.flatten())
        self.pending_stats = counts if self.pending_stats is None else self.pending_stats + counts

    @torch.no_grad()
    def update(self) -> None:
        """Move the bias by the counts of all ranks since the last update, and reset these."""
        pending, self.pending_stats = self.pending_stats, None
        together = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if pending is None and not together:
            return
        counts = torch.zeros_like(self.bias) if pending is None else pending.to(self.bias.device)
        if together:
            counts = counts.contiguous()
            dist.all_reduce(counts)
        if self.bias.dtype != torch.float32:  # loaded with one dtype for all weights
            self.bias = self.bias.float()
        self.bias += self.rate * (counts.mean() - counts).sign()


def update_router_bias(model: nn.Module) -> None:
    """Move the balance biases of all mixtures of experts (`moe_balance_bias`) by the counts of their training
    forwards: once for each step of the optimizer, after it, on all ranks. Other models are not changed.

    `optimizer.register_step_post_hook(lambda *_: update_router_bias(model))` calls it at each step.
    """
    mark_updated(model, REMINDER)
    for module in model.modules():
        if isinstance(module, BalanceBias):
            module.update()
