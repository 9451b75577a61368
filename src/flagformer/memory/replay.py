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

# (index of the segment, its incoming memory) -> (its loss or None, the next memory)
Segment = Callable[[int, RecurrentState | None], tuple[Tensor | None, RecurrentState]]


def replay(
    model: nn.Module, read: Segment, start: RecurrentState | None, count: int
) -> tuple[list[Tensor | None], RecurrentState]:
    """Accumulate the exact gradient of the sum of all losses, with the activations of one segment in memory.

    All segments except the last run once without a graph, and their recurrent states are stored. Then, from
    the last to the first, each runs with a graph and the random numbers of its first run, and passes the
    gradient of its incoming slots to the segment before. Memory grows with the number of segments by one
    recurrent state each, and a random number generator state for those that draw random numbers.

    Args:
        model: the model that reads the segments; its k-means statistics count the second run only.
        read: runs a segment; gradients between two segments flow through slots only.
        start: the incoming memory of the first segment; gradients flow into its slots. None: the model's
            initial slots.

    Returns:
        losses without graph, None for segments without a loss; and the state after the last segment.
    """
    refuse_sharded_above(model)
    context = ForwardContext(home_of(model)[0])
    states: list[RecurrentState | None] = [None if start is None else start.detach()]
    rng_states: list[tuple[Tensor, ...] | None] = []
    with torch.no_grad(), frozen_statistics(model):
        for index in range(count - 1):
            before = context.rng_state()
            states.append(read(index, states[-1])[1])
            rng_states.append(None if same_rng(before, context.rng_state()) else before)
    rng_states.append(None)  # the last segment runs once
    losses: list[Tensor | None] = []
    last, grad = None, None
    for index in reversed(range(count)):
        incoming = states.pop()
        if incoming is not None:
            incoming = replace(incoming, slots=_slots(incoming).detach().requires_grad_())
        with context.with_rng_state(rng_states.pop()):
            loss, outgoing = read(index, incoming)
        last = outgoing.detach() if last is None else last
        _backward([(loss, None)] + ([(_slots(outgoing), grad)] if grad is not None else []))
        losses.append(None if loss is None else loss.detach())
        grad = None if incoming is None else _slots(incoming).grad
        del loss, outgoing  # tensors without a gradient still hold their graph
    if start is not None and grad is not None:
        _backward([(_slots(start), grad)])
    assert last is not None
    return losses[::-1], last


def _backward(ends: Sequence[tuple[Tensor | None, Tensor | None]]) -> None:
    """Backpropagate from each tensor that has a graph, with its gradient; None: 1."""
    pairs = [(end, grad) for end, grad in ends if end is not None and end.requires_grad]
    if pairs:
        torch.autograd.backward([end for end, _ in pairs], [grad for _, grad in pairs])


def _slots(state: RecurrentState) -> Tensor:
    assert state.slots is not None
    return state.slots
