"""Cross entropy of products with a vocabulary, a part of the tokens at a time: `[N, V]` is never whole."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from flagformer.ops.full_precision import no_autocast


def chunked_cross_entropy(
    features: Tensor, weight: Tensor, targets: Tensor, ignore_index: int, chunks: int
) -> Tensor:
    """Mean cross entropy, in nats, of `features @ weight.T`; NaN where no target counts.

    Gradients are made in the forward, while a chunk's logits are there: nothing is computed twice, and only
    they are kept, in the sizes of the inputs. Sums are in fp32 at least, products in the type of autocast.

    Args:
        features: [N, E].
        weight: [V, E].
        targets: [N] long.
        ignore_index: a target of this value does not count.
        chunks: the number of parts, N / chunks tokens each.
    """
    if not torch.is_grad_enabled():
        features, weight = features.detach(), weight.detach()
    device = features.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else features.dtype
    with no_autocast(features.device):
        total = _Summed.apply(features, weight, targets, ignore_index, chunks, dtype)
        return total / (targets != ignore_index).sum()


class _Summed(torch.autograd.Function):
    """The sum over all targets that count."""

    @staticmethod
    def forward(
        ctx: Any,
        features: Tensor,
        weight: Tensor,
        targets: Tensor,
        ignore_index: int,
        chunks: int,
        dtype: torch.dtype,
    ) -> Tensor:
        of_features, of_weight, *_ = ctx.needs_input_grad
        wide = torch.promote_types(features.dtype, torch.float32)
        low = weight.to(dtype)
        total = features.new_zeros((), dtype=wide)
        feature_grads = torch.empty_like(features) if of_features else None
        weight_grads = torch.zeros_like(weight, dtype=wide) if of_weight else None
        start = 0
        for piece, target in zip(features.chunk(chunks), targets.chunk(chunks)):
            piece = piece.to(dtype)
            counts = target != ignore_index
            place = target.where(counts, 0)[:, None]
            logits = (piece @ low.T).to(wide)  # [N / chunks, V]
            most, picked = logits.amax(dim=-1, keepdim=True), logits.gather(1, place)
            # in place from here on: a second tensor of this size would be the peak
            sums = logits.sub_(most).exp_().sum(dim=-1, keepdim=True)
            total += (most - picked + sums.log())[:, 0].where(counts, 0.0).sum()
            if of_features or of_weight:
                # the gradient of logits: probabilities, less one at the target
                logits.div_(sums).scatter_add_(1, place, -torch.ones_like(sums))
                grads = logits.mul_(counts[:, None]).to(dtype)
            if feature_grads is not None:
                feature_grads[start : start + len(piece)] = grads @ low
            if weight_grads is not None:
                _add_product(weight_grads, grads.T, piece)
            start += len(piece)
        ctx.grads, ctx.dtypes = [feature_grads, weight_grads], (features.dtype, weight.dtype)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "the first backward of a loss of `loss_chunks` has used up its gradients; for a second one "
                "call the first with `retain_graph=True`"
            )
        if torch._C._autograd._get_current_graph_task_keep_graph():
            scaled = [None if one is None else one * grad for one in ctx.grads]
        else:
            # in place: the gradient of [V, E] would be there twice
            scaled = [None if one is None else one.mul_(grad) for one in ctx.grads]
            ctx.grads = None
        found = [None if one is None else one.to(dtype) for one, dtype in zip(scaled, ctx.dtypes)]
        return *found, None, None, None, None


def _add_product(into: Tensor, left: Tensor, right: Tensor) -> None:
    """into += left @ right, in place where the types allow."""
    if into.dtype == left.dtype:
        into.addmm_(left, right)
    else:
        into.add_(left @ right)
