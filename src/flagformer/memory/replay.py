"""Memory replay back-propagation (Memformer, arXiv:2010.06891, section 3.4), a segment at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flagformer.flow import Memories
from flagformer.stack.executor.replay import Surroundings

# (number of the segment, what it reads) -> (its loss or None, what it leaves)
Segment = Callable[[int, Memories], tuple[Tensor | None, Memories]]


def replay(read: Segment, start: Memories, count: int) -> tuple[list[Tensor | None], Memories]:
    """Adds to every parameter's gradient that of the sum of all losses; exact, in the memory of one segment.

    All segments but the last run once without a graph, and what they leave is kept; then, from the last to
    the first, each runs with one, under the random numbers of its first run, and hands the gradient of the
    slots that it read to the one before.

    Args:
        read: runs a segment; slots carry the only gradient between two of them.
        start: what the first one reads; gradients flow into its slots.

    Returns:
        losses without graph, None for segments that gave none; and what the last segment leaves.
    """
    around = Surroundings(_slots(start).device)
    held, draws = [start.detach()], []
    with torch.no_grad():
        for number in range(count - 1):
            draws.append(around.draws())
            held.append(read(number, held[-1])[1])
    losses: list[Tensor | None] = []
    last, grad = held[-1], None
    for number in reversed(range(count)):
        here = held.pop()
        slots = _slots(here).detach().requires_grad_()
        again = number < count - 1
        with around.drawing(draws.pop() if again else None):
            loss, left = read(number, replace(here, slots=slots))
        _backward([(loss, None)] + ([(_slots(left), grad)] if grad is not None else []))
        losses.append(None if loss is None else loss.detach())
        last, grad = last if again else left.detach(), slots.grad
    _backward([(_slots(start), grad)] if grad is not None else [])
    return losses[::-1], last


def _backward(ends: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
    """From each end that has a graph, with its gradient; None: one."""
    found = [(end, grad) for end, grad in ends if end is not None and end.requires_grad]
    if found:
        torch.autograd.backward([end for end, _ in found], [grad for _, grad in found])


def _slots(memories: Memories) -> Tensor:
    assert memories.slots is not None
    return memories.slots
