"""Memory replay back-propagation (Memformer, arXiv:2010.06891, section 3.4), a segment at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flagformer.attention.cores.kmeans import frozen_statistics
from flagformer.flow import RecurrentState
from flagformer.ops.home import home_of
from flagformer.ops.sharded import refuse_sharded_above
from flagformer.stack.executor.forward_context import ForwardContext, same_rng

# (number of the segment, what it reads) -> (its loss or None, what it leaves)
Segment = Callable[[int, RecurrentState | None], tuple[Tensor | None, RecurrentState]]


def replay(
    model: nn.Module, read: Segment, start: RecurrentState | None, count: int
) -> tuple[list[Tensor | None], RecurrentState]:
    """Adds to every parameter's gradient that of the sum of all losses; exact, in the memory of one segment.

    All segments but the last run once without a graph, and what they leave is kept; then, from the last to
    the first, each runs with one, under the random numbers of its first run, and hands the gradient of the
    slots that it read to the one before. What grows with the segments is what each leaves, and where the
    random numbers stood for those that draw any.

    Args:
        model: what segments are read by; its k-means count the tokens of the second run alone.
        read: runs a segment; slots carry the only gradient between two of them.
        start: what the first one reads; gradients flow into its slots. None: the slots that the model starts
            with.

    Returns:
        losses without graph, None for segments that gave none; and what the last segment leaves.
    """
    refuse_sharded_above(model)
    around = ForwardContext(home_of(model)[0])
    held: list[RecurrentState | None] = [None if start is None else start.detach()]
    draws: list[tuple[Tensor, ...] | None] = []
    with torch.no_grad(), frozen_statistics(model):
        for number in range(count - 1):
            before = around.rng_state()
            held.append(read(number, held[-1])[1])
            draws.append(None if same_rng(before, around.rng_state()) else before)
    draws.append(None)  # the last runs once
    losses: list[Tensor | None] = []
    last, grad = None, None
    for number in reversed(range(count)):
        here = held.pop()
        here = None if here is None else replace(here, slots=_slots(here).detach().requires_grad_())
        with around.with_rng_state(draws.pop()):
            loss, left = read(number, here)
        last = left.detach() if last is None else last
        _backward([(loss, None)] + ([(_slots(left), grad)] if grad is not None else []))
        losses.append(None if loss is None else loss.detach())
        grad = None if here is None else _slots(here).grad
        del loss, left  # what no gradient asked for has a graph still
    if start is not None and grad is not None:
        _backward([(_slots(start), grad)])
    assert last is not None
    return losses[::-1], last


def _backward(ends: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
    """From each end that has a graph, with its gradient; None: one."""
    found = [(end, grad) for end, grad in ends if end is not None and end.requires_grad]
    if found:
        torch.autograd.backward([end for end, _ in found], [grad for _, grad in found])


def _slots(memories: RecurrentState) -> Tensor:
    assert memories.slots is not None
    return memories.slots
