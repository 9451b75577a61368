"""Cross entropy of logits that are made at once, or a part of the tokens at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

from flagformer.ops.first_gradients import refuse_second_gradients
from flagformer.ops.full_precision import no_autocast
from flagformer.ops.leaf_sums import LeafSums
from flagformer.ops.tensor_hooks import suspend_tensor_hooks


def cross_entropy(logits: Tensor, targets: Tensor, ignore_index: int, reduction: str = "mean") -> Tensor:
    """`F.cross_entropy` of logits [B, T, V] and targets [B, T], in fp32 or better; the mean is NaN where no
    target counts."""
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, -2)
    return F.cross_entropy(exact, targets.flatten(), ignore_index=ignore_index, reduction=reduction)


def chunked_cross_entropy(
    to_logits: Callable[[Tensor], Tensor], x: Tensor, targets: Tensor, ignore_index: int, chunks: int
) -> Tensor:
    """The mean cross entropy, in nats, of `to_logits(x)`, which is never whole.

    Gradients are made in the forward, while a chunk's logits are there: nothing is computed twice, and only
    they are kept, in the sizes of what they are of. At the peak there are, for a linear head, one gradient of
    its weight and two tensors of a chunk's logits. Traced, or under transforms of torch.func, all parts are
    one graph, whose logits torch keeps.

    Args:
        to_logits: [1, n, D] -> [1, n, V], each token by itself.
        x: [B, T, D].
        targets: [B, T] long.
        ignore_index: a target of this value does not count; NaN where none does.
        chunks: the number of parts, B * T / chunks tokens each.
    """
    pieces = list(zip(x.flatten(0, 1).chunk(chunks), targets.flatten().chunk(chunks)))
    count = (targets != ignore_index).sum()
    traced = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if not traced and torch.is_grad_enabled():
        return _with_gradients(to_logits, pieces, x, ignore_index, count)
    parts = [cross_entropy(to_logits(piece[None]), target, ignore_index, "sum") for piece, target in pieces]
    return torch.stack(parts).sum() / count


def _with_gradients(
    to_logits: Callable[[Tensor], Tensor],
    pieces: Sequence[tuple[Tensor, Tensor]],
    x: Tensor,
    ignore_index: int,
    count: Tensor,
) -> Tensor:
    """The mean, connected with what it depends on by gradients that are known already."""
    of_x: list[Tensor] = []
    totals = []
    with LeafSums() as sums:
        for piece, target in pieces:
            piece = piece.detach().requires_grad_(x.requires_grad)
            total, grad = _through(to_logits, piece, target, ignore_index, sums)
            totals.append(total)
            if x.requires_grad:
                of_x.append(torch.zeros_like(piece) if grad is None else grad)
    found = [(x, torch.cat(of_x).view_as(x))] if of_x else []
    found += sums.pairs()
    known = [one.div_(count.clamp(min=1)) for _, one in found]  # of no target: 0, while the mean is NaN
    mean: Tensor = _Known.apply(torch.stack(totals).sum() / count, known, *[tensor for tensor, _ in found])
    return mean


def _through(
    to_logits: Callable[[Tensor], Tensor], piece: Tensor, target: Tensor, ignore_index: int, sums: LeafSums
) -> tuple[Tensor, Tensor | None]:
    """The sum of the cross entropy of a piece [n, D], and its gradient with respect to the piece; those with
    respect to leaves go to `sums`."""
    logits = to_logits(piece[None])
    total, grad = _sum_and_gradient(logits.detach(), target, ignore_index)
    if not logits.requires_grad:
        return total, None
    leaves = [leaf for leaf in _leaves(logits) if leaf is not piece]
    wanted = [*leaves, piece] if piece.requires_grad else leaves
    edge = get_gradient_edge(logits)
    del logits  # most heads do not need them for their gradients
    with no_autocast(piece.device), suspend_tensor_hooks(leaves):
        # retained: what leaves pass on their way here may belong to every piece (casts, parametrizations)
        grads = torch.autograd.grad([edge], wanted, [grad], retain_graph=True, allow_unused=True)
    for leaf, one in zip(leaves, grads):
        if one is not None:
            sums.add(leaf, one)
    return total, grads[-1] if piece.requires_grad else None


@torch.no_grad()
def _sum_and_gradient(logits: Tensor, target: Tensor, ignore_index: int) -> tuple[Tensor, Tensor]:
    """Of logits [1, n, V]: the sum of the cross entropy of the targets [n] that count, and its gradient."""
    exact = logits[0].to(torch.promote_types(logits.dtype, torch.float32))
    counts = target != ignore_index
    place = target.where(counts, 0)[:, None]
    most, picked = exact.amax(dim=-1, keepdim=True), exact.gather(1, place)
    # in place in one copy: the head's gradient may need its logits, and a third tensor would be the peak
    grad = (exact - most if exact.dtype == logits.dtype else exact.sub_(most)).exp_()
    del exact
    sums = grad.sum(dim=-1, keepdim=True)
    total = (most - picked + sums.log())[:, 0].where(counts, 0.0).sum()
    # probabilities, less one at the target
    grad.div_(sums).scatter_add_(1, place, -torch.ones_like(sums)).mul_(counts[:, None])
    return total, grad.to(logits.dtype)[None]


def _leaves(logits: Tensor) -> list[Tensor]:
    """The tensors that a graph accumulates gradients of."""
    found, seen, waiting = [], set(), [logits.grad_fn]
    while waiting:
        node: Any = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        waiting += [one for one, _ in node.next_functions]
    return found


class _Known(torch.autograd.Function):
    """A number whose gradients are given."""

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
            scaled = [one * grad for one in ctx.grads]
        else:
            # in place: the gradient of [V, E] would be there twice
            scaled = [one.mul_(grad) for one in ctx.grads]
            ctx.grads = None
        return None, None, *(one.to(dtype) for one, dtype in zip(scaled, ctx.dtypes))
