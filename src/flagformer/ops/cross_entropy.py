"""Cross entropy of all logits together, or in chunks of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge
from torch.utils.checkpoint import checkpoint

from flagformer.ops.first_gradients import refuse_second_gradients
from flagformer.ops.full_precision import no_autocast
from flagformer.ops.leaf_sums import LeafSums
from flagformer.ops.tensor_hooks import suspend_tensor_hooks


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int, reduction: str = "mean") -> Tensor:
    """`F.cross_entropy` of logits [B, T, V] and targets [B, T], in fp32 or fp64; the mean is NaN if all
    targets are ignored."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(exact, targets.flatten(), ignore_index=ignore_index, reduction=reduction)


def chunked_cross_entropy(
    to_logits: Callable[[Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    ignore_index: int,
    chunks: int,
    recompute: bool = False,
) -> Tensor:
    """The mean cross entropy, in nats, of `to_logits(x)`, without the logits of all tokens in memory.

    Gradients are computed in the forward, while a chunk's logits exist, so that nothing is computed twice;
    only the gradients of `x` and of the parameters are saved. The peak memory for a linear head is one
    gradient of its weight and two tensors of a chunk's logits. When traced, or under transforms of
    `torch.func`, all chunks are one graph, and torch saves its logits.

    Args:
        to_logits: [1, n, D] -> [1, n, V], each token independently.
        x: [B, T, D].
        targets: [B, T] long.
        ignore_index: targets of this value are ignored; the loss is NaN if all are.
        chunks: the number of chunks, of B * T / chunks tokens each.
        recompute: compute logits again in the backward instead. For a head under `fully_shard`: the end of
            any backward frees the parameters of all modules, also of those whose forward still runs.
    """
    parts = list(zip(x.flatten(0, 1).chunk(chunks), targets.flatten().chunk(chunks)))
    count = (targets != ignore_index).sum()
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not traced and not recompute and torch.is_grad_enabled():
        return _with_gradients(to_logits, parts, x, ignore_index, count)

    def total(chunk: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(to_logits(chunk[None]), target, ignore_index, "sum")

    if recompute and not traced:
        totals = [checkpoint(total, chunk, target, use_reentrant=False) for chunk, target in parts]
    else:
        totals = [total(chunk, target) for chunk, target in parts]
    return torch.stack(totals).sum() / count


def _with_gradients(
    to_logits: Callable[[Tensor], Tensor],
    parts: Sequence[tuple[Tensor, Tensor]],
    x: Tensor,
    ignore_index: int,
    count: Tensor,
) -> Tensor:
    """The mean loss, with gradients that are computed here and returned by its backward."""
    dx: list[Tensor] = []
    totals = []
    with LeafSums() as sums:
        for chunk, target in parts:
            chunk = chunk.detach().requires_grad_(x.requires_grad)
            total, grad = _chunk_loss(to_logits, chunk, target, ignore_index, sums)
            totals.append(total)
            if x.requires_grad:
                dx.append(torch.zeros_like(chunk) if grad is None else grad)
    pairs = [(x, torch.cat(dx).view_as(x))] if dx else []
    pairs += sums.pairs()
    grads = [grad.div_(count.clamp(min=1)) for _, grad in pairs]  # 0 without targets, while the mean is NaN
    mean: Tensor = _WithGradients.apply(
        torch.stack(totals).sum() / count, grads, *[tensor for tensor, _ in pairs]
    )
    return mean


def _chunk_loss(
    to_logits: Callable[[Tensor], Tensor], chunk: Tensor, target: Tensor, ignore_index: int, sums: LeafSums
) -> tuple[Tensor, Tensor | None]:
    """The sum of the cross entropy of a chunk [n, D], and its gradient; gradients of leaves are added to
    `sums`."""
    logits = to_logits(chunk[None])
    total, grad = _sum_and_gradient(logits.detach(), target, ignore_index)
    if not logits.requires_grad:
        return total, None
    leaves = [leaf for leaf in _leaves(logits) if leaf is not chunk]
    inputs = [*leaves, chunk] if chunk.requires_grad else leaves
    edge = get_gradient_edge(logits)
    del logits  # most heads do not need them for their gradients
    with no_autocast(chunk.device), suspend_tensor_hooks(leaves):
        # the graph is retained: all chunks may share a part of it (casts, parametrizations)
        grads = torch.autograd.grad([edge], inputs, [grad], retain_graph=True, allow_unused=True)
    for leaf, leaf_grad in zip(leaves, grads):
        if leaf_grad is not None:
            sums.add(leaf, leaf_grad)
    return total, grads[-1] if chunk.requires_grad else None


@torch.no_grad()
def _sum_and_gradient(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """The sum of the cross entropy of logits [1, n, V] and targets [n] that are not ignored, and its
    gradient."""
    exact = logits[0].to(torch.promote_types(logits.dtype, torch.float32))
    counted = target != ignore_index
    index = target.where(counted, 0)[:, None]
    highest, chosen = exact.amax(dim=-1, keepdim=True), exact.gather(1, index)
    # in place in one copy: the head's backward may need its logits, and a third tensor would be the peak
    grad = (exact - highest if exact.dtype == logits.dtype else exact.sub_(highest)).exp_()
    del exact
    sums = grad.sum(dim=-1, keepdim=True)
    total = (highest - chosen + sums.log())[:, 0].where(counted, 0.0).sum()
    # probabilities, minus one at the target
    grad.div_(sums).scatter_add_(1, index, -torch.ones_like(sums)).mul_(counted[:, None])
    return total, grad.to(logits.dtype)[None]


def _leaves(logits: Tensor) -> list[Tensor]:
    """The leaf tensors of a graph."""
    leaves, visited, stack = [], set(), [logits.grad_fn]
    while stack:
        node: Any = stack.pop()
        if node is None or node in visited:
            continue
        visited.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        stack += [next_node for next_node, _ in node.next_functions]
    return leaves


class _WithGradients(torch.autograd.Function):
    """A value with gradients that are computed already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, grads: list[Tensor], *tensors: Tensor) -> Tensor:
        ctx.grads, ctx.dtypes = grads, [tensor.dtype for tensor in tensors]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_gradients("a loss of `loss_chunks`", "leave `loss_chunks` out, or use `torch.func`")
        if ctx.grads is None:
            raise RuntimeError(
                "the first backward of a loss of `loss_chunks` has used up its gradients; for a second one "
                "call the first with `retain_graph=True`"
            )
        if torch._C._autograd._get_current_graph_task_keep_graph():
            scaled = [known * grad for known in ctx.grads]
        else:
            # in place: a copy would hold a second gradient of [V, E]
            scaled = [known.mul_(grad) for known in ctx.grads]
            ctx.grads = None
        return None, None, *(known.to(dtype) for known, dtype in zip(scaled, ctx.dtypes))
