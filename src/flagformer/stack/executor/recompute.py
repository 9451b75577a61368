"""A sublayer as an autograd function that saves no activations and recomputes them in the backward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from flagformer.flow import Carry, SideInputs, unflatten
from flagformer.ops.first_gradients import refuse_second_gradients
from flagformer.ops.tensor_hooks import suspend_tensor_hooks
from flagformer.residual.parallel_streams import ParallelStream
from flagformer.residual.reversible_streams import StreamPair
from flagformer.stack.executor.forward_context import ForwardContext, same_rng
from flagformer.stack.sublayer import Sublayer


class StreamSlot:
    """Holds the two streams during a backward: each step takes its outputs and stores its inputs.

    Args:
        exact: whether to check that both streams end up equal, as they were at the input.
    """

    def __init__(self, exact: bool) -> None:
        self.exact = exact
        self.streams: tuple[Tensor, Tensor] | None = None

    def take(self) -> tuple[Tensor, Tensor]:
        assert self.streams is not None
        streams, self.streams = self.streams, None
        return streams

    def close(self, read: Tensor, write: Tensor) -> None:
        """Check the streams at the first sublayer."""
        if self.exact and not torch.equal(read, write):
            raise RuntimeError(
                "`reversible_exact` could not recover the streams: they must be finite and below 1024, but "
                f"the recovered input is off by {(read - write).abs().max().item():.2g}; leave it out"
            )


class SublayerCall:
    """One sublayer at one step of a forward, or a group of them in parallel, for recomputation.

    Args:
        sublayers: the sublayer, or those of the group, in the order of their steps.
        record: the side inputs without their tensors.
        num_tensors: the number of these tensors.
        dtype: dtype of the model.
        context: autocast and random number state of the forward.
        streams: the streams of the backward.
        in_parallel: whether the residual of the stack is that of parallel groups.
    """

    def __init__(
        self,
        sublayers: Sequence[Sublayer],
        record: SideInputs,
        num_tensors: int,
        dtype: torch.dtype,
        context: ForwardContext,
        streams: StreamSlot,
        in_parallel: bool,
    ) -> None:
        self.sublayers, self.record, self.num_tensors, self.dtype = sublayers, record, num_tensors, dtype
        self.context, self.streams, self.in_parallel = context, streams, in_parallel
        self.parameters = [p for one in sublayers for p in one.parameters() if p.requires_grad]
        self.training = sublayers[0].training
        self.rng_state: tuple[Tensor, ...] | None = None
        self.loss_names: list[str] = []

    def forward(self, read: Tensor, write: Tensor, tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
        """Return the written stream and the losses; store the loss names and the RNG state if it was used."""
        before = self.context.rng_state()
        out, losses = self._compute(read, write, tensors, recomputing=False)
        self.rng_state = None if same_rng(before, self.context.rng_state()) else before
        self.loss_names = [name for name, values in losses.items() for _ in values]
        return out, *(value for values in losses.values() for value in values)

    def recompute(self, read: Tensor, tensors: Iterator[Tensor]) -> tuple[Tensor, ...]:
        """Return the output of the sublayer and the losses."""
        if self.sublayers[0].training != self.training:
            was, now = ("training", "eval") if self.training else ("eval", "training")
            raise RuntimeError(
                f"the mode must not change between forward and backward, but went from {was} to {now}: "
                "`reversible` recomputes activations"
            )
        zero = read.new_zeros(())  # a scalar, which does not affect the dtype of the sum
        with self.context.autocast(), self.context.with_rng_state(self.rng_state):
            out, losses = self._compute(read, zero, tensors, recomputing=True)
        return out, *(value for values in losses.values() for value in values)

    def _compute(
        self, read: Tensor, write: Tensor, tensors: Iterator[Tensor], recomputing: bool
    ) -> tuple[Tensor, dict[str, list[Tensor]]]:
        side = replace(
            unflatten(self.record, tensors),
            collector=self.record.collector.fork(),
            carry=Carry(),
            recomputing=recomputing,
        )
        pair = StreamPair(read, write, self.dtype)
        h: Any = ParallelStream(pair) if self.in_parallel else pair
        for sublayer in self.sublayers:
            h = sublayer(h, side)
            side.step += 1
        # the streams are swapped: the written one is read next
        out = (h.stream if self.in_parallel else h).read
        if names := side.carry.names():
            carried = ", ".join(f"`{name}`" for name in names)
            raise ValueError(
                f"`reversible` recomputes each sublayer on its own, but one of yours passes {carried} "
                'to later ones: declare `needs={"carry"}` on its component, and use another executor'
            )
        return out, side.collector.losses


class RecomputeFunction(torch.autograd.Function):
    """`(write, read, side tensors, parameters) -> (write + f(read), losses)`; the backward recomputes f.

    All tensors with gradients are inputs and all gradients are returned, so that hooks and
    DistributedDataParallel work as for any operator.
    """

    @staticmethod
    def forward(
        ctx: Any, call: SublayerCall, write: Tensor, read: Tensor, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.call = call
        ctx.set_materialize_grads(False)
        # with the parameters, so that a change before the backward raises an error, as for any operator
        ctx.save_for_backward(*tensors)
        out, *losses = call.forward(read, write, iter(tensors))
        ctx.mark_non_differentiable(*(loss for loss in losses if not loss.is_floating_point()))
        return out, *losses

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *of_losses: Tensor | None) -> tuple[Tensor | None, ...]:
        call, (_, write_needs, read_needs, *rest_needs) = ctx.call, ctx.needs_input_grad
        tensors, parameters = ctx.saved_tensors[: call.num_tensors], call.parameters
        after, read = call.streams.take()
        inputs = [read.detach().requires_grad_(read_needs)]
        inputs += [tensor.detach().requires_grad_(needs) for tensor, needs in zip(tensors, rest_needs)]
        with torch.set_grad_enabled(any(one is not None for one in (grad, *of_losses))):
            out, *losses = call.recompute(inputs[0], iter(inputs[1:]))
        before = after - out.detach()
        call.streams.streams = (read, before)
        if call.record.step == 0:
            call.streams.close(*call.streams.take())
        found = gradients((out, *losses), (grad, *of_losses), [*inputs, *parameters])
        return None, grad if write_needs else None, *found


class BackwardStart(torch.autograd.Function):
    """The identity on the streams, on inputs of earlier steps, and on the losses.

    Its backward runs first and stores the streams for the steps.
    """

    @staticmethod
    def forward(
        ctx: Any, streams: StreamSlot, read: Tensor, write: Tensor, *rest: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.streams = streams
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(read, write)
        ctx.mark_non_differentiable(*(one for one in rest if not one.is_floating_point()))
        return tuple(one.view_as(one) for one in (read, write, *rest))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_gradients("`reversible`", "build without it, or use `torch.func`")
        ctx.streams.streams = tuple(ctx.saved_tensors)
        return None, *grads


def gradients(
    outputs: Sequence[Tensor], grads: Sequence[Tensor | None], inputs: Sequence[Tensor]
) -> list[Tensor | None]:
    """Return the gradients of `outputs`, weighted by `grads`, for each input; None where there is none."""
    pairs = [
        (out, grad.to(out.dtype))
        for out, grad in zip(outputs, grads)
        if grad is not None and out.requires_grad
    ]
    targets = [one for one in inputs if one.requires_grad]
    if not pairs or not targets:
        return [None for _ in inputs]
    with suspend_tensor_hooks(targets):
        found = torch.autograd.grad(
            [out for out, _ in pairs], targets, [grad for _, grad in pairs], allow_unused=True
        )
    rest = iter(found)
    return [next(rest) if one.requires_grad else None for one in inputs]
